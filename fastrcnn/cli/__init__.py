"""The command line, `fastrcnn COMMAND key=value ...`, with one small module per command.

torch and Hydra are only imported after the arguments have been checked.
"""

from __future__ import annotations

import errno
import importlib
import io
import logging
import os
import sys

from fastrcnn.parallel.launch import launch

SHARED = ("train", "eval", "propose")  # commands that can run in several processes
COMMANDS = {  # command -> (its line in the overview, its documentation page)
    "demo": ("run all steps (proposals, training, evaluation and detection) on generated images", "README.md"),
    "check": ("check a data set and its proposals before training, and write a report", "docs/data.md"),
    "propose": (
        "generate proposals for a data set or a folder of images, or convert a proposal file",
        "docs/proposals.md",
    ),
    "proposals-check": ("find the box convention that a proposal file uses", "docs/proposals.md"),
    "train": ("train a detector and evaluate it", "docs/training.md"),
    "eval": (
        "evaluate a checkpoint, and write its AP, a report and its detections, or files for an evaluation server",
        "docs/evaluation.md",
    ),
    "reval": ("evaluate saved detections (comp4 files or COCO results) without a model", "docs/evaluation.md"),
    "compare": (
        "compare the AP of each class in several evaluations on the same images, with confidence intervals",
        "docs/evaluation.md",
    ),
    "detect": (
        "detect objects in images or a video, draw the boxes, and write JSON, CSV, comp4 or label files",
        "docs/detection.md",
    ),
    "compress": ("make a detector smaller and faster with truncated SVD of fc6 and fc7", "docs/deployment.md"),
    "svm": ("replace the softmax of a checkpoint with one linear SVM per class", "docs/paper.md"),
    "export": (
        "export a checkpoint to ONNX, torch.export (.pt2), Caffe, safetensors, or a state dict for torchvision",
        "docs/deployment.md",
    ),
    "reproduce": (
        "run the experiments of a table of the paper, and print the paper's numbers next to the measured numbers",
        "docs/paper.md",
    ),
    "replay": ("repeat a training step whose loss was not finite, to find the cause", "docs/training.md"),
    "explain-roi": ("draw the bins of RoI pooling for one RoI, and print the pooled values", "docs/roi_pooling.md"),
}
FLAGS_SAID = "FASTRCNN_FLAGS"
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
QUIET, VERBOSE = ("-q", "--quiet"), ("-v", "--verbose")
USAGE = "usage: fastrcnn COMMAND [key=value ...]      (fastrcnn COMMAND --help describes a command and its keys)"


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return its exit status.

    The status is 0 on success, 1 for an error that the user can fix, 2 for a missing or unknown command, and 128 plus
    the signal's number if a signal ended the program. Some commands return other statuses too. argv: the arguments
    after the program's name, by default the arguments of this process. Errors that are bugs are raised as exceptions.
    """
    arguments = sys.argv[1:] if argv is None else argv
    from fastrcnn.parallel.signals import Stopped, handle_signals

    try:
        with handle_signals(to_the_end=argv is None):
            message, status = "", _run(arguments)
            print(end="", flush=True)  # an error that occurs at the exit of Python would have no message
    except Stopped as stopped:
        message, status = str(stopped), stopped.status
    except KeyboardInterrupt:  # in a thread, or if another handler replaced ours
        message, status = "interrupted.", 130
    except BrokenPipeError:
        message, status = "", 1
    except Exception as error:
        message, status = _message(error, *arguments[:1]), 1
        if not message:
            raise
    if message and _prints_errors():
        print(f"fastrcnn: {message}", file=sys.stderr)
    try:
        print(end="", flush=True)
    except OSError:  # a closed pipe or a full disk; Python would try again at its exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return status


def _message(error: Exception, command: str = "") -> str:
    """Return the message for an error that the user can fix, or '' for a bug. command: the name of the command."""
    from fastrcnn.errors import UserError

    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, UnicodeEncodeError):
        return _invalid_name(error)
    if isinstance(error, OSError):
        return _file_error(error, command) if error.filename is not None or error.errno in FULL else ""
    if "torchvision" in f"{error}{getattr(error, 'name', '')}" and isinstance(error, (ImportError, RuntimeError)):
        return _incompatible_torchvision(error)
    if isinstance(error, MemoryError) or "torch" in sys.modules:
        from fastrcnn.memory import out_of_memory, ran_out

        if ran_out(error):  # outside training and detection, which raise errors with their own advice
            return (
                f"{command}: {out_of_memory(error)} Another process may be using the memory: check `nvidia-smi` for a "
                "GPU, and `top` for the host. Lower runtime.workers to save host memory, or set runtime.device=cpu to "
                "use no GPU memory."
            )
    return ""


def _run(arguments: list[str]) -> int:
    """Run the command that the arguments name, and return its exit status (see main)."""
    # OpenMP's threads should sleep, not spin, while they wait for each other. If other processes run on the same
    # cores (the loader's workers, for example), spinning costs far more than waking up: three times the CPU time for a
    # training step with two other busy processes on two cores. torch is imported later, and then reads the variable.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    from fastrcnn.errors import UserError, nearest
    from fastrcnn.parallel.processes import refuse_import

    refuse_import()
    show_any_text()
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_overview())
        return 0 if arguments else 2
    if arguments[0] in ("--version", "-V", "version"):
        from fastrcnn import __version__

        print(f"fastrcnn {__version__}")
        return 0
    command, rest = arguments[0], arguments[1:]
    if command not in COMMANDS:
        print(f"fastrcnn: unknown command '{command}'.{nearest(command, COMMANDS)}\n\n{_overview()}", file=sys.stderr)
        return 2
    if launch().size > 1 and command not in SHARED:
        raise UserError(
            f"`fastrcnn {command}` runs in one process only. Start it without torchrun. These commands can run in "
            f"several processes: {', '.join(SHARED)}."
        )
    module = importlib.import_module(f"fastrcnn.cli.{command.replace('-', '_')}")
    if "-h" in rest or "--help" in rest:
        from fastrcnn.config.compose import help_text

        given = [a for a in rest if a not in ("-h", "--help", *QUIET, *VERBOSE)]
        about, page = COMMANDS[command]
        print(help_text(command, about, module.EXAMPLES, given, getattr(module, "EVERYDAY", None)))
        print(f"Documentation: {page} in the repository.")
        return 0
    speak(rest)
    return module.main([argument for argument in rest if argument not in (*QUIET, *VERBOSE)])


def show_any_text() -> None:
    """Make stdout and stderr print unencodable characters as escape sequences, instead of raising an error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def speak(arguments: list[str], head: str = "") -> None:
    """Set up logging for the flags in `arguments`. head: prefix of each line.

    --quiet logs only warnings and errors. --verbose logs everything, with the time and the logger's name in each line.
    """
    quiet, verbose = (any(a in flags for a in arguments) for flags in (QUIET, VERBOSE))
    os.environ[FLAGS_SAID] = " ".join(a for a in arguments if a in (*QUIET, *VERBOSE))  # for child processes
    line = f"{head}%(asctime)s %(name)s: %(message)s" if verbose else f"{head}%(message)s"
    logging.basicConfig(format=line, datefmt="%H:%M:%S", stream=sys.stderr)
    ours = logging.WARNING if quiet else logging.DEBUG if verbose else logging.INFO
    others = logging.INFO if verbose else logging.WARNING
    for name, level in (("fastrcnn", ours), (None, others)):
        logging.getLogger(name).setLevel(logging.CRITICAL if launch().rank else level)  # only the first process logs
    if quiet:
        from fastrcnn.progress import be_silent

        be_silent()


def _prints_errors() -> bool:
    """Return whether this process prints the message of an error that ended it.

    Before the processes of a job have formed their process group, the same error occurs in all processes of a machine,
    and only the first one prints it. Afterwards, each process prints its own error.
    """
    distributed = sys.modules.get("fastrcnn.parallel.distributed")
    return launch().local_rank == 0 or (distributed is not None and distributed.size() > 1)


def _invalid_name(error: UnicodeEncodeError) -> str:
    """Return the message for a name that cannot be encoded as a file name or as UTF-8, or an empty string."""
    name, encoding = ascii(error.object[:200]), sys.getfilesystemencoding()
    if error.encoding.replace("_", "-") not in (encoding, "utf-8"):
        return ""
    if encoding == "utf-8":
        return f"{name}: this name is not valid UTF-8, and fastrcnn writes all files in UTF-8. Change the name."
    return (
        f"{name}: this name has characters that {encoding}, the encoding of file names on this system, cannot "
        "represent. Use UTF-8: set the environment variable PYTHONUTF8=1, or a locale such as LC_ALL=C.UTF-8."
    )


def _file_error(error: OSError, command: str) -> str:
    """Return the message for an error of the operating system with a file or folder: the path, the error and advice."""
    if error.filename is None:  # writing to an open file, such as stdout
        return f"{command}: the output cannot be written ({error.strerror}). Free some space, or choose another path."
    advice = "Check this path."
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        os.umask(mask := os.umask(0))
        advice = "Check the permissions of this path and of the folders above it, or choose another path."
        if mask & 0o700:
            advice += f" The umask is {mask:04o}, so you cannot use the files that you create. Run `umask 022` first."
    elif error.errno in FULL:
        advice = "Free some space, or choose another path."
    return f"{os.fsdecode(error.filename)}: {error.strerror}. {advice}"


def _incompatible_torchvision(error: Exception) -> str:
    """Return the message for a torchvision that cannot be imported, usually because it was built for another torch."""
    from importlib.metadata import distributions

    found = [f"{d.name} {d.version}" for d in distributions() if d.name in ("torch", "torchvision")]
    return (
        f"torchvision does not work with torch (installed: {', '.join(sorted(found)) or 'none'}): {error}\n"
        "Install both together, from the same index: pip install --force-reinstall torch torchvision"
    )


def _overview() -> str:
    commands = "\n".join(f"  {command:<16} {about}" for command, (about, _) in COMMANDS.items())
    return f"""Fast R-CNN: training, evaluation and detection with precomputed or selective-search proposals.

{USAGE}

{commands}

Start with `fastrcnn demo`. To train on your own images:
  fastrcnn train recipe=transfer data=custom data.root=FOLDER"""
