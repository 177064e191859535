"""`Run`: one verb at work in one folder, from its settings to the files that hold its result."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

from amp.errors import UserError
from amp.run.console import reproduce, say
from amp.run.files import alone_in
from amp.run.identity import PACKAGES, check_same, identity, read_header, recorded_frame, versions
from amp.run.options import check_outside_images, check_outside_models, prepare_output
from amp.run.processes.signals import continues
from amp.run.sealed import check_whole, is_there, read_json, write_json
from amp.run.world import start, world
from amp.settings.model import Frame
from amp.settings.run import RunConfig

Config = TypeVar("Config")
RunSettings = TypeVar("RunSettings", bound=RunConfig)


@dataclass(frozen=True)
class Run(Generic[Config]):
    """What a verb is asked for, where its files go, and whether they are there already.

    Attributes:
        config: settings, or the options of an evaluation.
        folder: of the files.
        identity: what decides the result, as of `amp.run.identity`.
        key: the setting or option that chose the folder, for messages.
        packages: whose versions are recorded.
        missing: what is wrong with the inputs of a run whose outputs are there, which then needs none.
    """

    config: Config
    folder: Path
    identity: Mapping[str, Any]
    key: str = "output.dir"
    packages: tuple[str, ...] = PACKAGES
    missing: UserError | None = None

    @property
    def header(self) -> dict[str, Any]:
        """The identity with the versions of the software: what every artifact records."""
        return {**self.identity, "versions": versions(self.packages)}

    def with_frame(self: "Run[RunSettings]", frame: Frame | None) -> "Run[RunSettings]":
        """The same run, of a model of that frame where the settings leave it open."""
        config = self.config.with_frame(frame)
        decisive = config.decisive()
        settings = {key: decisive.get(key, value) for key, value in self.identity["settings"].items()}
        return replace(self, config=config, identity={**self.identity, "settings": settings})

    def with_frame_of(self: "Run[RunSettings]", first: str, *others: str) -> "Run[RunSettings]":
        """The same run, of a model of the frame that the first of these outputs records, if they are all there."""
        if not self._all_there(first, *others):
            return self
        return self.with_frame(world().from_main(lambda: recorded_frame(read_header(self.path(first)))))

    def path(self, name: str) -> Path:
        """Of a file or folder of this run."""
        return self.folder / name

    def done(self, first: str, *others: str) -> bool:
        """Whether all of these outputs are there; says so. The first one holds the header of the run that made it.

        Of a file in a folder, `pruned/config.json`, people are told of the folder.

        Raises:
            UserError: it was made by another run, or one of them is damaged.
        """
        there = self._all_there(first, *others)
        if there:
            world().from_main(lambda: self._check_all(first, *others))
            names = dict.fromkeys(_as_told(name) for name in (first, *others))
            say(f"already done: {' and '.join(str(self.path(name)) for name in names)}")
        return there

    def _all_there(self, *names: str) -> bool:
        return world().from_main(lambda: all(is_there(self.path(name)) for name in names))

    def check(self, name: str) -> None:
        """Raises UserError where an artifact, which is there, was made by another run, or cannot be read."""
        told = self.path(_as_told(name))
        header = read_header(self.path(name), f"delete {told} to make it again")
        check_same(told, header, self.identity, self.key)

    def _check_all(self, first: str, *others: str) -> None:
        try:
            self.check(first)
        except UserError as error:
            raise self.missing or error from None
        for name in (first, *others):
            check_whole(self.path(name), f"delete {self.path(_as_told(name))} to make it again")

    def found(self, name: str) -> dict[str, Any] | None:
        """The JSON record of this run, if it is there; as the main process reads it.

        Raises:
            UserError: it is of another run.
        """
        return world().from_main(lambda: self._read(self.path(name)))

    def _read(self, path: Path) -> dict[str, Any] | None:
        if not path.exists():
            return None
        record = read_json(path)
        check_same(path, record, self.identity, self.key)
        return record

    def write(self, name: str, record: Mapping[str, Any], script: str | None = None) -> dict[str, Any]:
        """Writes a JSON record with the header, by the main process; returns it.

        Args:
            script: that was called, for the command line that reproduces the run; None records none.
        """
        whole = {**record, **self.header} | ({"reproduce": reproduce(script)} if script else {})
        world().from_main(lambda: write_json(self.path(name), whole))
        continues()
        return whole


def _as_told(name: str) -> str:
    return name.partition("/")[0]


Inputs = Callable[[], Mapping[str, str | None]]


@contextmanager
def open_run(
    config: RunSettings,
    inputs: Inputs = dict,
    outputs: tuple[str, ...] = (),
    leave_out: tuple[str, ...] = (),
    place: Callable[[Run[RunSettings]], Path] = lambda run: run.folder,
) -> Iterator[Run[RunSettings]]:
    """The run of an entry script, with its processes, alone in its folder: `with open_run(config) as run: ...`.

    What is wrong with the inputs is told before anything is said of the folder, about which a mistake in them says
    nothing. A run that is done needs its inputs no more.

    Args:
        inputs: digests of what the run reads besides the dense model, their names ending in `_sha256`; asked on the
            main process.
        outputs: of which `Run.done` will be asked.
        leave_out: as of `amp.run.identity.identity`.
        place: the run's folder, where it is not `output.dir` itself.
    Raises:
        UserError: the folder is a model's, cannot be written to, or another run holds it; an input is missing.
    """
    with start() as own, ExitStack() as locks:

        def begin() -> Run[RunSettings]:
            check_outside_models(config.output.dir)
            missing, digests = None, {}
            try:
                digests = dict(inputs())
            except UserError as error:
                missing = error
                if not (outputs and Path(config.output.dir).is_dir()):
                    raise
            run = Run(config, Path(config.output.dir), identity(config, leave_out, **digests), missing=missing)
            run = replace(run, folder=place(run))
            check_outside_images(run.folder, config.data.root)
            if missing and not (outputs and all(is_there(run.path(name)) for name in outputs)):
                raise missing
            locks.enter_context(alone_in(prepare_output(str(run.folder))))
            return run

        run = own.from_main(begin)
        continues()
        yield run
