"""Commands of ``headkit heads``: publish, find, fetch and roll back heads in a store."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .terminal import Json, lines_of, show, table_of

if TYPE_CHECKING:
    from headkit.registry.store.store import HeadStore

app = typer.Typer(
    help="Publish, find, fetch and roll back heads in a store.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Store = Annotated[
    str | None,
    typer.Option(
        help="Directory or URL (s3://, gs://, az://, …); else $HEADKIT_STORE or the user's own."
    ),
]
Ref = Annotated[str, typer.Argument(help="flowers, flowers@3, flowers@prod or sha256:…")]


def _store(url: str | None) -> HeadStore:
    from headkit.registry.store.store import HeadStore

    return HeadStore(url)


@app.command()
def publish(
    path: Annotated[Path, typer.Argument(help="Head file.")],
    name: Annotated[str, typer.Option(help="Name to publish it under.")],
    tag: Annotated[list[str] | None, typer.Option(help="Set on the new version.")] = None,
    parent: Annotated[
        str | None, typer.Option(help="Head that it came from; the newest version without it.")
    ] = None,
    publisher: Annotated[
        str | None, typer.Option(help="$HEADKIT_PUBLISHER or the user's name without it.")
    ] = None,
    notes: Annotated[str, typer.Option(help="Free text.")] = "",
    store: Store = None,
    as_json: Json = False,
) -> None:
    """Publish a head file as the next version of a name."""
    version = _store(store).publish(
        path, name, tags=tag or (), publisher=publisher, parent=parent, notes=notes
    )
    show(asdict(version), as_json, f"{version} sha256:{version.digest}")


@app.command("list")
def list_heads(
    pattern: Annotated[str, typer.Argument(help="Glob of names.")] = "*",
    store: Store = None,
    as_json: Json = False,
) -> None:
    """List the names in a store."""
    rows = _store(store).list(pattern)
    header = ("head", "latest", "versions", "yanked", "tags")
    cells = [(r.name, r.latest, len(r.versions), len(r.yanked), ", ".join(r.tags)) for r in rows]
    show([asdict(row) for row in rows], as_json, table_of(header, cells))


@app.command("show")
def show_head(ref: Ref, store: Store = None, as_json: Json = False) -> None:
    """Show what a version is and who made it from what, and the other versions of its name."""
    heads = _store(store)
    version = heads.resolve(ref)
    tags = heads.tags(version.name)
    (entry,) = heads.list(version.name)
    described: dict[str, Any] = {
        **asdict(version),
        "tags": [tag for tag, number in tags.items() if number == version.version],
        "yanked": version.version in entry.yanked,
    }
    rows = []
    for one in heads.versions(version.name):
        metrics = one.head.get("metrics", {})
        pointing = ", ".join(tag for tag, number in tags.items() if number == one.version)
        rows.append(
            {
                "version": one.version,
                "published": one.published,
                "publisher": one.publisher,
                "classes": one.head.get("num_classes"),
                "accuracy": metrics.get("accuracy"),
                "tags": pointing,
                "yanked": one.version in entry.yanked,
            }
        )
    described["history"] = rows
    cells = [[*list(row.values())[:-1], "yanked" if row["yanked"] else ""] for row in rows]
    table = table_of((*list(rows[0])[:-1], ""), cells)
    described_alone = {k: v for k, v in described.items() if k != "history"}
    show(described, as_json, "\n".join([*lines_of(described_alone), "", table]))


@app.command()
def pull(
    ref: Annotated[str, typer.Argument(help="Reference to the store, or hf://user/repo[/name].")],
    out: Annotated[Path | None, typer.Option(help="File to write; else one in the cache.")] = None,
    store: Store = None,
    as_json: Json = False,
) -> None:
    """Fetch a head file from the store, checked against its hash, or from the Hub."""
    if ref.startswith("hf://"):
        from headkit.registry.hub.hub import pull as pull_from_hub

        path = pull_from_hub(ref, out)
    else:
        path = _store(store).pull(ref, out)
    show({"path": str(path)}, as_json, str(path))


@app.command()
def push(
    head: Annotated[str, typer.Argument(help="Head file, or reference to the store.")],
    url: Annotated[str, typer.Argument(help="hf://user/repo, or hf://user/repo/name.")],
    private: Annotated[
        bool | None, typer.Option(help="Of a new repository; the account's default without it.")
    ] = None,
    message: Annotated[str | None, typer.Option(help="Of the commit.")] = None,
    store: Store = None,
    as_json: Json = False,
) -> None:
    """Put a head into a repository of the Hugging Face Hub, with a model card."""
    from headkit.registry.hub.hub import push as push_to_hub
    from headkit.registry.resolve import head_file

    commit = push_to_hub(head_file(head, store), url, private=private, message=message)
    show({"commit": commit}, as_json, commit)


@app.command("tag")
def set_tag(
    ref: Ref,
    tag: Annotated[str, typer.Argument(help="Such as prod.")],
    store: Store = None,
    as_json: Json = False,
) -> None:
    """Have a tag point to a version, forward or back."""
    version = _store(store).tag(ref, tag)
    show(asdict(version), as_json, f"{version.name}@{tag} is {version}")


@app.command()
def untag(
    ref: Annotated[str, typer.Argument(help="Such as flowers@prod.")],
    store: Store = None,
) -> None:
    """Remove a tag; the version stays."""
    name, _, tag = ref.partition("@")
    _store(store).untag(name, tag)
    print(f"{ref} is gone")


@app.command()
def yank(
    ref: Ref,
    undo: Annotated[bool, typer.Option("--undo", help="Have it be found again.")] = False,
    store: Store = None,
    as_json: Json = False,
) -> None:
    """Have a version no longer be the newest; named by number or tag it is still found."""
    version = _store(store).yank(ref, undo=undo)
    show(asdict(version), as_json, f"{version} is {'found again' if undo else 'yanked'}")


@app.command()
def verify(store: Store = None, as_json: Json = False) -> None:
    """Check every object of a store; status 1 if something is wrong."""
    problems = _store(store).verify()
    show({"problems": problems}, as_json, "\n".join(problems) or "nothing is wrong")
    if problems:
        raise typer.Exit(1)


@app.command()
def gc(
    grace_hours: Annotated[float, typer.Option(help="Younger objects stay.")] = 24,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Delete nothing.")] = False,
    store: Store = None,
    as_json: Json = False,
) -> None:
    """Delete head files that no version names, and what interrupted publishers left."""
    if grace_hours < 0:
        raise ValueError(f"grace-hours is {grace_hours}, expected 0 or more")
    deleted = _store(store).gc(grace_seconds=grace_hours * 3600, dry_run=dry_run)
    word = "would be deleted" if dry_run else "deleted"
    show({"deleted": deleted}, as_json, "\n".join([*deleted, f"{len(deleted)} {word}"]))
