"""The commands ``heads …``: extract and change heads; publish, find, fetch and roll them back."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headkit.cli.terminal import Json, format_lines, format_table, show

from . import classes

if TYPE_CHECKING:
    from headkit.registry.store.store import HeadStore

app = typer.Typer(
    help="Extract heads from checkpoints, change and compare heads; publish, find, fetch and roll "
    "back heads in a store.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
for _command in (classes.select, classes.drop, classes.rename, classes.diff):
    app.command()(_command)

Store = Annotated[
    str | None,
    typer.Option(
        help="Store: a directory or a URL (s3://, gs://, az://, …). Default: $HEADKIT_STORE, or "
        "headkit/heads in the user's data folder."
    ),
]
Ref = Annotated[
    str,
    typer.Argument(
        help="Reference to a version: flowers (the newest), flowers@3, flowers@prod or sha256:…"
    ),
]
VerifyWith = Annotated[
    list[Path] | None,
    typer.Option(
        help="Public key (Ed25519, PEM or OpenSSH) that must have signed a version; repeatable: "
        "one of the keys is enough. Default: the keys in $HEADKIT_VERIFY_WITH."
    ),
]
StoreName = Annotated[
    str | None,
    typer.Option(
        help="Name of the store in signatures, the same for all who publish and read. Default: "
        "$HEADKIT_STORE_NAME, or the store's URL, for a directory its absolute path."
    ),
]


def _open_store(
    url: str | None, verify_with: list[Path] | None = None, name: str | None = None
) -> HeadStore:
    from headkit.registry.store.store import HeadStore

    return HeadStore(url, verify_with=verify_with, name=name)


@app.command()
def publish(
    path: Annotated[Path, typer.Argument(help="Head file.")],
    name: Annotated[
        str, typer.Option(help="Name under which the head is published, such as flowers.")
    ],
    tag: Annotated[
        list[str] | None, typer.Option(help="Tag for the new version, such as prod; repeatable.")
    ] = None,
    parent: Annotated[
        str | None,
        typer.Option(
            help="Reference to the head that this one is derived from. Default: the newest version "
            "under the same name."
        ),
    ] = None,
    publisher: Annotated[
        str | None,
        typer.Option(
            help="Name of the publisher. Default: $HEADKIT_PUBLISHER, or the user's login name."
        ),
    ] = None,
    notes: Annotated[str, typer.Option(help="Free text that is stored with the version.")] = "",
    sign: Annotated[
        Path | None,
        typer.Option(
            help="Private key (Ed25519, PEM or OpenSSH) that signs the version. Its passphrase "
            "comes from $HEADKIT_SIGN_PASSPHRASE, or is asked for. Needs headkit[sign]."
        ),
    ] = None,
    store_name: StoreName = None,
    store: Store = None,
    as_json: Json = False,
) -> None:
    """Publish a head file under a name, as its next version."""
    version = _open_store(store, name=store_name).publish(
        path, name, tags=tag or (), publisher=publisher, parent=parent, notes=notes, sign=sign
    )
    show(asdict(version), as_json, f"{version} sha256:{version.digest}")


@app.command("list")
def list_heads(
    pattern: Annotated[str, typer.Argument(help="Glob for the names, such as flowers*.")] = "*",
    store: Store = None,
    as_json: Json = False,
) -> None:
    """List the heads in a store."""
    rows = _open_store(store).list(pattern)
    header = ("head", "latest", "versions", "yanked", "tags")
    cells = [(r.name, r.latest, len(r.versions), len(r.yanked), ", ".join(r.tags)) for r in rows]
    show([asdict(row) for row in rows], as_json, format_table(header, cells))


@app.command("show")
def show_head(ref: Ref, store: Store = None, as_json: Json = False) -> None:
    """Show a version of a head, and the head's version history."""
    heads = _open_store(store)
    version = heads.resolve(ref)
    tags = heads.tags(version.name)
    (entry,) = heads.list(version.name)
    description: dict[str, Any] = {
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
    description["history"] = rows
    cells = [[*list(row.values())[:-1], "yanked" if row["yanked"] else ""] for row in rows]
    table = format_table((*list(rows[0])[:-1], ""), cells)
    lines = format_lines({k: v for k, v in description.items() if k != "history"})
    show(description, as_json, "\n".join([*lines, "", table]))


@app.command()
def pull(
    ref: Annotated[
        str,
        typer.Argument(
            help="Reference to a head in the store, such as flowers@prod, or the URL of a head on "
            "the Hub: hf://user/repo[/name]."
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="Path of the new head file. Default: a file in the user's cache folder."),
    ] = None,
    verify_with: VerifyWith = None,
    store_name: StoreName = None,
    store: Store = None,
    as_json: Json = False,
) -> None:
    """Fetch a head file from a store or from the Hugging Face Hub."""
    if ref.startswith("hf://"):
        from headkit.registry.hub.hub import pull as pull_from_hub

        if verify_with:
            raise ValueError("heads on the Hub have no signatures: leave --verify-with out")
        path = pull_from_hub(ref, out)
    else:
        path = _open_store(store, verify_with, store_name).pull(ref, out)
    show({"path": str(path)}, as_json, str(path))


@app.command()
def push(
    head: Annotated[str, typer.Argument(help="Head file, or reference to a head in the store.")],
    url: Annotated[
        str, typer.Argument(help="Destination on the Hub: hf://user/repo or hf://user/repo/name.")
    ],
    private: Annotated[
        bool | None,
        typer.Option(
            help="Make a new repository private or public. Default: the account's setting."
        ),
    ] = None,
    message: Annotated[
        str | None,
        typer.Option(
            help="Commit message. Default: the head's architecture and number of classes."
        ),
    ] = None,
    store: Store = None,
    as_json: Json = False,
) -> None:
    """Push a head to the Hugging Face Hub, with a model card for the repository."""
    from headkit.registry.hub.hub import push as push_to_hub
    from headkit.registry.resolve import head_file

    commit = push_to_hub(head_file(head, store), url, private=private, message=message)
    show({"commit": commit}, as_json, commit)


@app.command("tag")
def set_tag(
    ref: Ref,
    tag: Annotated[str, typer.Argument(help="Tag, such as prod.")],
    store: Store = None,
    as_json: Json = False,
) -> None:
    """Set a tag on a version. An existing tag is moved."""
    version = _open_store(store).tag(ref, tag)
    show(asdict(version), as_json, f"{version.name}@{tag} is {version}")


@app.command()
def untag(
    ref: Annotated[str, typer.Argument(help="Name and tag, such as flowers@prod.")],
    store: Store = None,
) -> None:
    """Remove a tag. The version is kept."""
    name, _, tag = ref.partition("@")
    _open_store(store).untag(name, tag)
    print(f"removed the tag {ref}")


@app.command()
def extract(
    checkpoint: Annotated[
        str,
        typer.Argument(
            help="Weights file of a fully trained model (.safetensors, .pth, .ckpt, …); or the "
            "folder of a model that timm saved."
        ),
    ],
    out: Annotated[
        Path, typer.Option(help="Path of the new head file, with the suffix .safetensors.")
    ],
    backbone: Annotated[
        str | None,
        typer.Option(
            help="timm architecture of the model, such as resnet50. Default: the one that the "
            "folder names."
        ),
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option(
            help="Names of the classes: separated by commas, or a file with one name per line or "
            "in JSON. Default: the names in the checkpoint."
        ),
    ] = None,
    task: Annotated[
        str, typer.Option(help="Task: multiclass, multilabel or regression.")
    ] = "multiclass",
    remap: Annotated[
        bool,
        typer.Option("--remap", help="Match the tensors by position, not by name."),
    ] = False,
    notes: Annotated[str, typer.Option(help="Free text that is stored in the head file.")] = "",
    as_json: Json = False,
) -> None:
    """Take the head out of the checkpoint of a fully trained model."""
    from headkit.adapters.file_kinds import HEAD, check_output

    check_output(out, HEAD, inputs=[checkpoint])
    from headkit.adapters.heads.from_checkpoint import extract_head, read_label_names

    head = extract_head(
        checkpoint,
        backbone,
        None if labels is None else read_label_names(labels),
        task=task,  # type: ignore[arg-type]  # checked there
        remap=remap,
        notes=notes,
    )
    head.save(out)
    names = head.label_names
    text = f"{head.num_classes} classes, " + ("without names" if names is None else "with names")
    result = {
        "head": str(out),
        "bytes": out.stat().st_size,
        "architecture": head.architecture,
        "num_classes": head.num_classes,
        "label_names": None if names is None else list(names),
        "backbone": asdict(head.backbone),
    }
    show(result, as_json, f"{out}: {out.stat().st_size:,} bytes, {head.architecture}, {text}")


@app.command()
def yank(
    ref: Ref,
    undo: Annotated[bool, typer.Option("--undo", help="Undo an earlier yank.")] = False,
    store: Store = None,
    as_json: Json = False,
) -> None:
    """Yank a version, so that `latest` skips it. Its number and its tags still work."""
    version = _open_store(store).yank(ref, undo=undo)
    show(asdict(version), as_json, f"{version} is {'no longer ' if undo else ''}yanked")


@app.command()
def verify(
    verify_with: VerifyWith = None,
    store_name: StoreName = None,
    store: Store = None,
    as_json: Json = False,
) -> None:
    """Check every object in a store. Exit with status 1 if there are problems."""
    heads = _open_store(store, verify_with, store_name)
    problems, unchained = heads.verify(), heads.unchained()
    lines = [*problems] if problems else ["no problems found"]
    if unchained:
        lines.append(
            f"these versions have no checksum, so nobody can tell whether their records were "
            f"changed: {', '.join(unchained)}"
        )
    show({"problems": problems, "unchained": unchained}, as_json, "\n".join(lines))
    if problems:
        raise typer.Exit(1)


@app.command()
def upgrade(store: Store = None) -> None:
    """Upgrade a store to version 2: new versions and tags get checksums that `verify` checks.

    Versions of headkit before 0.2 can no longer use the store.
    """
    heads = _open_store(store)
    heads.upgrade()
    print(f"{heads.url} has version 2")


@app.command()
def gc(
    grace_hours: Annotated[
        float, typer.Option(help="Keep objects that are newer than this many hours.")
    ] = 24,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List what would be deleted; delete nothing.")
    ] = False,
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            help="Accept a grace period of less than one hour. Make sure "
            "that nobody is publishing.",
        ),
    ] = False,
    store: Store = None,
    as_json: Json = False,
) -> None:
    """Delete unused files: heads that no version uses, and leftovers from interrupted publishes.

    Heads first move to the store's trash. A later run deletes them there.
    """
    if grace_hours < 0:
        raise ValueError(f"grace-hours is {grace_hours}, expected 0 or more")
    heads = _open_store(store)
    deleted = heads.gc(grace_seconds=grace_hours * 3600, dry_run=dry_run, force=force)
    word = "would be deleted" if dry_run else "deleted"
    show({"deleted": deleted}, as_json, "\n".join([*deleted, f"{len(deleted)} {word}"]))
