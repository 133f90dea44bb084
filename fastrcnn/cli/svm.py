"""The command `fastrcnn svm`."""

from __future__ import annotations

from fastrcnn.build.checkpoints import compose_for, open_trained
from fastrcnn.errors import UserError

EXAMPLES = [
    "fastrcnn svm checkpoint=RUN",
    "fastrcnn svm checkpoint=RUN detection=paper      (mAP with the paper's detection settings)",
    "fastrcnn svm checkpoint=RUN c=0.01 data.flip=false output=other.pt",
    "fastrcnn svm checkpoint=RUN data.test=[]         (without measuring the mAP)",
]


def main(arguments: list[str]) -> int:
    """Write a checkpoint with SVMs instead of the softmax, and print the mAP with the softmax and with the SVMs."""
    config = compose_for("svm", arguments)
    trained = open_trained(config, arguments)
    from fastrcnn.build import derived

    output, source = derived.output_file(config.output, trained.file, "svm/best.pt")
    if trained.config["model"].get("classifier") == "svm":
        raise UserError(
            f"{trained.file}: this checkpoint already has SVMs. Use the original checkpoint with the softmax."
        )
    print("\n".join(derived.replace_softmax(config, trained, output, source)))
    return 0
