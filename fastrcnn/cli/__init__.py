"""The command line: `fastrcnn VERB key=value ...`. One small module a verb.

Neither torch nor Hydra is imported before the arguments have been looked at.
"""

from __future__ import annotations

import errno
import importlib
import io
import logging
import os
import sys

from fastrcnn.parallel.launch import launch

SHARED = ("train", "eval", "propose")  # verbs that several processes share the work of
VERBS = {
    "demo": "the whole job on the embedded data set: data, proposals, training, evaluation, detection",
    "check": "report on a data set and its proposals before anything is trained: console, JSON, HTML page",
    "propose": "make proposals for a data set or a folder of pictures, or convert them from another format",
    "proposals-check": "find out which convention the boxes of a proposal file follow",
    "train": "train a detector; evaluates it too",
    "eval": "evaluate a checkpoint: AP, a report on its mistakes, detections in the devkit's format; competitions",
    "reval": "evaluate detections that were saved, comp4 files or COCO results, without a model",
    "compare": "compare evaluations on the same images: AP of each class, and how sure their differences are",
    "detect": "find objects in pictures or a video: draws them and writes JSON, CSV or comp4",
    "compress": "make a checkpoint smaller and faster: truncated SVD of fc6 and fc7",
    "svm": "train one SVM a class in place of the softmax, on the features of a checkpoint",
    "export": "write a checkpoint's network for other programs: ONNX, pt2, .caffemodel, safetensors, torchvision",
    "reproduce": "run the experiments of a table of the paper and print its numbers beside the measured ones",
    "replay": "do a training step again whose loss was not finite, and find where it broke",
    "explain-roi": "draw what RoI pooling keeps, loses and computes for one RoI",
}
FLAGS_SAID = "FASTRCNN_FLAGS"
QUIET, VERBOSE = ("-q", "--quiet"), ("-v", "--verbose")
USAGE = "usage: fastrcnn VERB [key=value ...]      (fastrcnn VERB --help lists the keys of a verb)"


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns the exit status: 0, 1 for a mistake of the user's, 2 for a wrong call, 128 and a
    signal's number where it ended the program."""
    arguments = sys.argv[1:] if argv is None else argv
    from fastrcnn.parallel.signals import Stopped, handle_signals

    try:
        with handle_signals(to_the_end=argv is None):
            return _answer(arguments)
    except Stopped as stopped:
        said, status = str(stopped), stopped.status
    except KeyboardInterrupt:  # in a thread, or where another handler took over
        said, status = "interrupted.", 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        said, status = _explained(error, *arguments[:1]), 1
        if not said:
            raise
    if said and _speaks():
        print(f"fastrcnn: {said}", file=sys.stderr)
    return status


def _explained(error: Exception, verb: str = "") -> str:
    """What is wrong and what to do about it; empty where that is a fault of the program."""
    from fastrcnn.errors import UserError

    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, UnicodeEncodeError):
        return _not_a_name(error)
    if isinstance(error, OSError):
        return _unusable(error) if error.filename is not None else ""
    if "torchvision" in f"{error}{getattr(error, 'name', '')}" and isinstance(error, (ImportError, RuntimeError)):
        return _unfit_pair(error)
    if isinstance(error, MemoryError) or "torch" in sys.modules:
        from fastrcnn.memory import out_of_memory, ran_out

        if ran_out(error):  # where no size is known that could be turned down; training and detection say theirs
            return (
                f"{verb}: {out_of_memory(error)} Another process may be using it (see nvidia-smi for a GPU, top for "
                "the machine). Fewer runtime.workers need less of the machine's memory; runtime.device=cpu none of a "
                "GPU's."
            )
    return ""


def _answer(arguments: list[str]) -> int:
    """What the arguments ask for; see main."""
    # OpenMP's threads should sleep, not spin, while they wait for each other: on a machine that does anything else
    # besides, the loader's processes for one, spinning costs far more than waking up (three times the CPU time for a
    # training step with two busy neighbours on two cores). Read when torch is loaded, which is yet to come.
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
    verb, rest = arguments[0], arguments[1:]
    if verb not in VERBS:
        print(f"fastrcnn: there is no verb '{verb}'.{nearest(verb, VERBS)}\n\n{_overview()}", file=sys.stderr)
        return 2
    if launch().size > 1 and verb not in SHARED:
        raise UserError(f"{verb} runs in one process: call it without torchrun. For several: {', '.join(SHARED)}.")
    module = importlib.import_module(f"fastrcnn.cli.{verb.replace('-', '_')}")
    if "-h" in rest or "--help" in rest:
        from fastrcnn.config.compose import help_text

        given = [a for a in rest if a not in ("-h", "--help", *QUIET, *VERBOSE)]
        print(help_text(verb, VERBS[verb], module.EXAMPLES, given, getattr(module, "EVERYDAY", None)))
        return 0
    speak(rest)
    return module.main([argument for argument in rest if argument not in (*QUIET, *VERBOSE)])


def show_any_text() -> None:
    """From now on characters that the terminal's encoding lacks are printed as escapes, instead of raising an error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def speak(arguments: list[str], head: str = "") -> None:
    """Sets up what is said on the way: what goes wrong, what is done, or everything with its time and place. head: what
    each line begins with."""
    quiet, verbose = (any(a in flags for a in arguments) for flags in (QUIET, VERBOSE))
    os.environ[FLAGS_SAID] = " ".join(a for a in arguments if a in (*QUIET, *VERBOSE))  # for processes begun from here
    line = f"{head}%(asctime)s %(name)s: %(message)s" if verbose else f"{head}%(message)s"
    logging.basicConfig(format=line, datefmt="%H:%M:%S", stream=sys.stderr)
    ours = logging.WARNING if quiet else logging.DEBUG if verbose else logging.INFO
    others = logging.INFO if verbose else logging.WARNING
    for name, level in (("fastrcnn", ours), (None, others)):
        logging.getLogger(name).setLevel(logging.CRITICAL if launch().rank else level)  # the first speaks for all
    if quiet:
        from fastrcnn.progress import be_silent

        be_silent()


def _speaks() -> bool:
    """Whether this process is to say what went wrong. Before the processes of a job have joined, the same goes wrong in
    all those of a machine, and the first one there says it."""
    distributed = sys.modules.get("fastrcnn.parallel.distributed")
    return launch().local_rank == 0 or (distributed is not None and distributed.size() > 1)


def _not_a_name(error: UnicodeEncodeError) -> str:
    """What to do about a name that cannot be written in the encoding of file names, or in UTF-8 files."""
    name, encoding = ascii(error.object[:200]), sys.getfilesystemencoding()
    if error.encoding.replace("_", "-") not in (encoding, "utf-8"):
        return ""
    if encoding == "utf-8":
        return f"{name}: is not valid UTF-8, in which files are written. Rename what has this name."
    return (
        f"{name}: has characters that {encoding}, the encoding of file names here, lacks. Use UTF-8: set the "
        "environment variable PYTHONUTF8=1, or a locale such as LC_ALL=C.UTF-8."
    )


def _unusable(error: OSError) -> str:
    """What to do about a file or folder that the system does not let us use."""
    advice = "Check this path."
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        os.umask(mask := os.umask(0))
        advice = "Check who may read and write it and the folders above it, or choose another place."
        if mask & 0o700:
            advice += f" The umask is {mask:04o}: what you create, you cannot use yourself; `umask 022` is usual."
    elif error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        advice = "Make room, or choose another place."
    return f"{os.fsdecode(error.filename)}: {error.strerror}. {advice}"


def _unfit_pair(error: Exception) -> str:
    """What to do when torchvision cannot be imported, nearly always because it was built for another torch."""
    from importlib.metadata import distributions

    found = [f"{d.name} {d.version}" for d in distributions() if d.name in ("torch", "torchvision")]
    return (
        f"torchvision cannot be used with this torch (installed: {', '.join(sorted(found)) or 'neither'}): {error}\n"
        "Install the two together, from one index: pip install --force-reinstall torch torchvision"
    )


def _overview() -> str:
    verbs = "\n".join(f"  {verb:<16} {what}" for verb, what in VERBS.items())
    return f"""Fast R-CNN: training, evaluation and detection with precomputed or selective-search proposals.

{USAGE}

{verbs}

Start with `fastrcnn demo`. Your own images: `fastrcnn train recipe=transfer data=custom data.root=FOLDER`."""
