"""A look from every node before anything is loaded: does it see the model and the folders of the run like the driver?

The driver writes a token into every folder where ranks will write; a node reads it and writes an answer beside it, and
the driver must see that. A model must have the same digest under the same path.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Collection, Generator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actors.model_folder import model_digest
from cluster.run.waits import Waits
from curriculum.errors import RunFailed, UserError, one_line
from curriculum.files import private_files
from curriculum.secrets import lent
from curriculum.shared_folder import SharedFolder, seen

LOOK_S = 180.0
"""Longest wait for a node to look."""
NOTICE_S = 10.0
"""When a node that has not looked yet is named."""
_ray: Any = ray  # where its declarations have no complete types


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSight:
    """A model that is on every node under the same path."""

    key: str
    """Recipe key that names it."""
    path: str
    digest: str
    """As the driver sees it."""

    def fault(self) -> str | None:
        """Return what is wrong with it on this node."""
        name, way_out = f"{self.key}={self.path!r}", "put it on a disk that every node sees, or there on every node"
        if not Path(self.path).is_dir():
            return f"{name}: is not there; {way_out}"
        try:
            found = model_digest(self.path)
        except (UserError, OSError) as error:
            return f"{name}: cannot be read ({one_line(error)}); {way_out}"
        return None if found == self.digest else f"{name}: has other files there than at the driver; {way_out}"


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderSight:
    """A folder where ranks write what the driver and the other ranks read."""

    key: str
    """What names it: an option or a recipe key."""
    place: SharedFolder
    token: str
    """Name of a file that the driver has put there, with its name as the content."""

    def fault(self, node: str) -> str | None:
        """Return what is wrong with it on this node; if nothing is, its answer is there."""
        if not self.place.is_here() or not seen(self._sees_token):
            return f"{self.key}: {self.place} is not the folder that the driver sees; {self._way_out}"
        try:
            self.place.write(self.answer(node), [self.token.encode()])
        except UserError as error:
            return f"{self.key}: {one_line(error)}"
        return None

    def fault_of_answer(self, node: str) -> str | None:
        """Return what is wrong with the answer of a node, at the driver."""
        if seen(partial(self._holds_token, self.answer(node))):
            return None
        return f"{self.key}: what is written to {self.place} there is not seen by the driver; {self._way_out}"

    def answer(self, node: str) -> str:
        """Return the name of the file that a node writes."""
        return f".{node}{self.token}"

    def _sees_token(self) -> bool:
        return self._holds_token(self.token)

    def _holds_token(self, name: str) -> bool:
        try:
            return self.place.read(name) == self.token.encode()
        except UserError:
            return False

    @property
    def _way_out(self) -> str:
        return "give a folder that every node sees with --run-dir, or set checkpoint.storage"


def look(
    node: str, models: Sequence[ModelSight], folders: Sequence[FolderSight], secrets: Mapping[str, str]
) -> str | None:
    """Return the first thing that this node does not see as the driver does.

    Args:
        node: its id.
        models: what its actors load.
        folders: where its ranks write; none if it has no ranks.
        secrets: with which they are reached.
    """
    with private_files(), lent(secrets):
        faults = [sight.fault() for sight in models] + [sight.fault(node) for sight in folders]
    return next((fault for fault in faults if fault is not None), None)


@contextlib.contextmanager
def tokens(places: Mapping[str, SharedFolder], nodes: Collection[str]) -> Generator[list[FolderSight]]:
    """Put a token into every folder, and take it and the answers of the nodes away again.

    Args:
        places: folders by what names them.
        nodes: ids of those that may answer.

    Raises:
        UserError: a folder cannot be written.
    """
    token = f".look-{secrets.token_hex(8)}.partial"
    sights = [FolderSight(key=key, place=place, token=token) for key, place in places.items()]
    try:
        for sight in sights:
            sight.place.make()
            sight.place.write(token, [token.encode()])
        yield sights
    finally:
        for sight in sights:
            with contextlib.suppress(UserError):
                for name in (token, *map(sight.answer, nodes)):
                    sight.place.remove(name)
                sight.place.remove_if_empty()


async def look_from_nodes(
    addresses: Mapping[str, str],
    models: Sequence[ModelSight],
    places: Mapping[str, SharedFolder],
    rank_nodes: Collection[str],
    waits: Waits,
    secrets: Mapping[str, str],
) -> None:
    """Look from every node.

    Args:
        addresses: of the nodes that hold actors, by their ids.
        models: what the actors load.
        places: folders where ranks write, by what names them.
        rank_nodes: ids of the nodes with ranks.
        waits: is told which nodes are waited for.
        secrets: with which the folders are reached.

    Raises:
        UserError: a node does not see something, in one line for each node.
        RunFailed: a node does not answer, or has no such program.
    """
    with tokens(places, addresses) as folders:
        found = await asyncio.gather(
            *(
                _look_from(node, address, models, folders if node in rank_nodes else (), waits, secrets)
                for node, address in addresses.items()
            )
        )
        answers = {(node, sight): sight.fault_of_answer for node in rank_nodes for sight in folders}
        if not any(found):
            found = [
                f"node {addresses[node]}: {fault}"
                for (node, _), fault_of in answers.items()
                if (fault := await asyncio.to_thread(fault_of, node)) is not None
            ]
    if faults := [fault for fault in found if fault is not None]:
        raise UserError(*dict.fromkeys(faults))


async def _look_from(
    node: str,
    address: str,
    models: Sequence[ModelSight],
    folders: Sequence[FolderSight],
    waits: Waits,
    secrets: Mapping[str, str],
) -> str | None:
    place = NodeAffinitySchedulingStrategy(node, soft=False)
    remote = _ray.remote(num_cpus=0, max_retries=0)(look)
    reply = remote.options(scheduling_strategy=place).remote(node, models, folders, secrets if folders else {})
    try:
        with waits.on(f"node {address} to look at its disks", is_bounded=True, notice_s=NOTICE_S):
            async with asyncio.timeout(LOOK_S):
                fault = await reply
    except TimeoutError as error:
        _ray.cancel(reply, force=True)
        raise RunFailed(
            f"node {address}: has not looked at its disks within {LOOK_S:.0f} s; look for a disk of it that hangs"
        ) from error
    except RayTaskError as error:
        raise RunFailed(f"node {address}: cannot look at its disks: {one_line(error)}") from error
    return None if fault is None else f"node {address}: {fault}"
