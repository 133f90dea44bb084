"""fastrcnn propose"""

from __future__ import annotations

from pathlib import Path

from fastrcnn.config.compose import compose
from fastrcnn.config.schema import ProposeConfig
from fastrcnn.errors import UserError
from fastrcnn.parallel.launch import launch

EXAMPLES = [
    "fastrcnn propose data=voc07 data.root=VOCdevkit",
    "fastrcnn propose source='photos/*.jpg' output=photos.proposals data.selective_search.mode=quality",
    "fastrcnn propose convert=[voc_2007_trainval.mat,voc_2007_test.mat] data=voc07 data.root=VOCdevkit",
    "fastrcnn propose convert=NAME.proposals output=NAME.mat",
]


def main(arguments: list[str]) -> int:
    """Makes proposals with selective search, going on where an earlier call was interrupted; or converts others."""
    config: ProposeConfig = compose("propose", arguments)
    if config.convert and launch().size > 1:
        raise UserError("convert= is done by one process: call it without torchrun.")
    if config.convert:
        from fastrcnn.cli.convert import convert

        return convert(config)
    if config.ids is not None or config.convention is not None:
        raise UserError("ids= and convention= are about the file that convert=FILE names; name it, or leave them out.")
    import torch

    from fastrcnn.parallel import distributed
    from fastrcnn.proposals.store import ProposalStore

    with distributed.join_processes(torch.device("cpu")):
        made = make(config)
        for path in made if distributed.leads() else []:
            store = ProposalStore(path)
            boxes = sum(len(store.boxes(i)) for i in store.ids)
            print(f"{path}: {len(store)} pictures, {boxes / len(store):.0f} boxes each on average")
    return 0


def make(config: ProposeConfig) -> list[Path]:
    """Makes the stores that the configuration asks for."""
    from fastrcnn.build import annotations, datasets
    from fastrcnn.data import sources

    if config.source is not None:
        if config.output is None:
            raise UserError("where to? With source=, name the store: output=NAME.proposals.")
        pictures, looks = sources.without_truth(sources.pictures(config.source))
        annotations.say_looks(looks)
        return [datasets.make_proposals(config.data, pictures, Path(config.output).expanduser(), config.workers)]
    names = annotations.classes(config.data)
    if config.output is not None:
        both = list(dict.fromkeys([*config.data.train, *config.data.test]))
        everything = annotations.samples(config.data, both, names)
        return [datasets.make_proposals(config.data, everything, Path(config.output).expanduser(), config.workers)]
    made = []
    for splits in (config.data.train, config.data.test):
        part = annotations.samples(config.data, splits, names)
        path = datasets.proposal_path(config.data, part, annotations.split_name(splits))
        made.append(datasets.make_proposals(config.data, part, path, config.workers))
    return made
