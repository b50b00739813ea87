from __future__ import annotations

import errno
import json
import os
import re
import signal
from importlib.metadata import version
from pathlib import Path
from unittest import mock

import pytest
from picture_folder import draw
from processes import command_in_background, exit_codes, line_with
from training_runs import trained_by_command

from tuplet.cli.main import COMMANDS, main
from tuplet.config import RunConfig
from tuplet.config.overrides import override
from tuplet.training.run_folder import Run, write_config

FEW_GLYPHS = [
    *("--data.glyph-train-classes", "6", "--data.glyph-test-classes", "4", "--data.glyphs-per-class", "6"),
]


@pytest.fixture(scope="module")
def run(tiny: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return trained_by_command(tiny, tmp_path_factory.mktemp("cli"), "--seed", "3")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("trian", "no command 'trian'; want one of demo, train"),
        ("train cub", "no recipe 'cub'; want one of demo, omniglot, folder"),
        (
            "train demo --loss.tua 3",
            "there is no option --loss.tua; want perhaps --loss.tau; tuplet train demo --help lists what",
        ),
        ("train demo --loss contrastive", "'contrastive'; want one of hist, proxy-anchor"),
        ("train demo --loss", "--loss is missing its value; want the name of a loss after it"),
        ("train demo --seeds 0", "--seeds is 0; want 1 or more"),
        ("train demo --loss.margin 0.1", "loss.margin is 0.1; want None, for hist has none of"),
        ("train demo --loss=supcon --loss.class-fraction 0.5", "it is there for hist only"),
        ("train demo --loss.tau warm", "--loss.tau is 'warm'; want a number;"),
        ("train demo --loss.tau -1", "tuplet: --loss.tau is -1.0; want a number > 0"),
        ("train demo --loss.distance far", "--loss.distance is 'far'; want one of mahalanobis, eu"),
        ("train demo --evaluation.recall-at 0 2", "--evaluation.recall-at is 0 2; want one or"),
        ("train demo --config x.yaml", "got demo and --config; want RECIPE or --config FILE, not"),
        ("train demo --resume x", "want tuplet train --resume RUN, without a recipe"),
        ("train cub-resnet50", "--data.root is not given; want the folder of the images, which tuplet data"),
        ("tune omniglot", "--data.root is not given; want the folder of the images; or --data.source glyphs"),
        ("train --loss.tau 3", "want RECIPE or --config FILE first"),
        ("train --config", "--config is missing its value; want a path after it"),
        ("train --config nowhere.yaml", "nowhere.yaml cannot be read"),
        ("train --resume nowhere", "there is no run in nowhere"),
        ("evaluate nowhere", "nowhere does not exist; want the folder of a run"),
        ("report a b", "'b' is one argument too many; want tuplet report RUN"),
        ("recipes demo omniglot", "'omniglot' is one argument too many"),
        ("train demo --seed 99999999999999999999", "want 0..2^63-1"),
        (
            "train demo FEW --to /proc/tuplet/run",
            "tuplet: cannot use /proc/tuplet (No such file or directory); want another --to\n",
        ),
        ("data describe", "--root is not given; want a folder of images, or --source glyphs\n"),
        ("train --config=nowhere.yaml", "nowhere.yaml cannot be read"),
        ("report nowhere", "there is no run in nowhere"),
        ("data count", "tuplet data has no 'count'; want describe"),
        ("data describe --root nowhere", "nowhere"),
        ("recipes cub", "no recipe 'cub'"),
    ],
)
def test_mistakes_end_in_one_line(arguments: str, message: str, fails) -> None:
    assert message in fails(*arguments.replace("FEW", " ".join(FEW_GLYPHS)).split())


def test_no_images_named_is_said_before_anything_is_made(fails, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert "data.root is not given" in fails("train", "omniglot", "--to", str(folder))
    assert not folder.exists()
    folder.mkdir()
    (folder / "precious").write_text("work")
    assert "is not empty; want a new folder" in fails("train", "demo", *FEW_GLYPHS, "--to", str(folder))
    assert (folder / "precious").read_text() == "work"


def test_a_run_has_everything_in_its_folder(run: Run) -> None:
    names = {path.name for path in run.folder.iterdir() if not path.name.startswith(".")}
    files = "config.yaml metrics.jsonl environment.json notes.json report.html"
    assert names == {*files.split(), "checkpoints", "model"}
    assert run.config.seed == 3
    assert len(run.report_file.read_text()) > 10_000


def test_evaluate_agrees_with_the_last_epoch(run: Run, says) -> None:
    printed = json.loads(says("evaluate", str(run.folder), "--json"))
    last = run.reports()[-1].evaluation
    assert last is not None
    assert printed["retrieval"] == last.retrieval
    assert printed["clustering"]["nmi_mean"] == last.clustering.nmi_mean
    words = says("evaluate", str(run.folder), "--evaluation.recall-at", "1", "3")
    assert f"{100 * last.retrieval['recall_at_1']:.2f} %" in words
    assert "Recall@3" in words
    assert "Recall@8" not in words


def test_several_seeds_of_a_rival_end_in_a_summary(run: Run, tmp_path: Path, says) -> None:
    options = ["--loss=supcon", "--schedule.epochs", "2", "--evaluation.selection", "oracle"]
    arguments = ["train", "--config", str(run.config_file), "--seeds", "2", "--to", str(tmp_path / "runs")]
    said = says(*arguments, *options)
    runs = [Run(tmp_path / "runs" / f"seed{seed}") for seed in (3, 4)]
    assert [(one.config.seed, one.config.loss.name) for one in runs] == [(3, "supcon"), (4, "supcon")]
    assert all(one.config.data.sampler == "per-class" for one in runs)
    assert all(one.report_file.is_file() for one in runs)
    recalls = [[one.evaluation.retrieval["recall_at_1"] for one in run.reports()] for run in runs]
    first, best = (50 * sum(map(of, recalls)) for of in (lambda one: one[0], max))
    page = (tmp_path / "runs" / "summary.md").read_text()
    assert page in said
    assert f"| Recall@1 | {first:.1f} | {best:.1f} | " in page
    assert "Selection: oracle: epoch" in page
    assert "Seeds 3, 4: mean, standard deviation and 95 % t interval over them." in page
    assert "epoch 1/2" not in says(*arguments, *options)  # nothing is trained again


def test_report_and_resume_of_a_finished_run_change_no_weight(run: Run, says) -> None:
    before = run.checkpoint_file.read_bytes()
    run.report_file.unlink()
    assert str(run.report_file) in says("report", str(run.folder))
    assert run.report_file.is_file()
    resumed = says("train", "--resume", str(run.folder))
    assert (
        f"run       {run.folder}\nfinished  already, at epoch 3; only its report was written again\n"
        in resumed
    )
    assert run.checkpoint_file.read_bytes() == before


def test_recipes_and_data_describe(says) -> None:
    assert "omniglot" in says("recipes")
    assert "distance: mahalanobis" in says("recipes", "demo")
    few = ["--source", "glyphs", "--glyph-train-classes", "7", "--image-size", "16"]
    assert "7  20 / 20 / 20" in says("data", "describe", *few)


def test_version_and_help(says) -> None:
    assert all(f"  {name:<12}" in says("--help") for name in COMMANDS)
    assert says("--version").strip() == f"tuplet {version('tuplet')}"


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """Four classes of drawings as files, one of them cut short."""
    root = draw(tmp_path / "photographs", range(4), range(6))
    broken = root / "class 0" / "3.png"
    broken.write_bytes(broken.read_bytes()[:60])
    return root


SMALL = [
    *("--model.backbone", "tuplet_convnet", "--model.no-pretrained", "--model.embedding-dim", "8"),
    *("--data.image-size", "16", "--data.resize", "16", "--data.batch-size", "4", "--loss.hidden-dim", "8"),
    *("--schedule.epochs", "1", "--compute.accelerator", "cpu"),
]


@pytest.mark.parametrize("workers", ["0", "2"])
def test_a_broken_image_stops_with_its_path(photographs: Path, workers: str, tmp_path: Path, fails) -> None:
    command = ["train", "folder", "--data.root", str(photographs), "--compute.num-workers", workers, *SMALL]
    error = fails(*command, "--to", str(tmp_path / "run"))
    assert str(photographs / "class 0" / "3.png") in error
    assert "leave such files out with --data.on-bad-image skip" in error


def test_or_is_skipped_and_listed(photographs: Path, tmp_path: Path, says) -> None:
    command = ["train", "folder", "--data.root", str(photographs), "--data.on-bad-image", "skip", *SMALL]
    printed = says(*command, "--to", str(tmp_path / "run"))
    assert re.search(r"^skipped +1 ", printed, re.M)
    run = Run(tmp_path / "run")
    (skipped,) = run.read_json(run.notes_file)["skipped_images"]
    assert "3.png" in skipped
    assert "3.png" in run.report_file.read_text()


def test_ctrl_c_says_how_to_go_on(tiny: RunConfig, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(write_config(override(tiny, {"compute.num_workers": 1})))
    command = ["train", "--config", tmp_path / "config.yaml", "--to", tmp_path / "run"]
    process = command_in_background(tmp_path, *command, "--schedule.epochs", "100000")
    line_with("epoch      2/", tmp_path / "stdout.txt", process)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the loader's processes as well
    assert exit_codes([process], seconds=180) == [130]
    error = (tmp_path / "stderr.txt").read_text()
    assert error == f"\nstopped; resume with: tuplet train --resume {tmp_path / 'run'}\n"


def test_evaluate_on_other_images(run: Run, photographs: Path, says) -> None:
    images = ["--data.source", "folder", "--data.root", photographs, "--data.on-bad-image", "skip"]
    printed = json.loads(says("evaluate", run.folder, "--json", *images))
    assert (printed["num_classes"], printed["num_images"]) == (2, 12)


def test_demo_ends_with_where_the_report_is_and_what_to_try(tiny: RunConfig, tmp_path: Path, says) -> None:
    printed = says("demo", "--to", str(tmp_path / "run"), *FEW_GLYPHS, "--schedule.epochs", "1")
    lines = printed.splitlines()
    assert str(tmp_path / "run" / "report.html") in lines[-4]
    assert "train folder --data.root PHOTOS" in lines[-2]


def test_a_failed_start_removes_only_what_it_made(tmp_path: Path, fails, capsys) -> None:
    mine = tmp_path / "mine"
    (mine / ".git").mkdir(parents=True)
    (mine / ".git" / "HEAD").write_text("ref")
    (mine / ".env").write_text("mine")
    bad = ["--model.backbone", "nothing", "--model.no-pretrained", *FEW_GLYPHS]
    with pytest.raises(SystemExit):
        main(["train", "demo", *bad, "--to", str(mine)])
    said = capsys.readouterr()
    assert "backbone is 'nothing'" in said.err
    assert str(mine) not in said.out  # a folder that is not there after all
    assert sorted(path.name for path in mine.rglob("*")) == [".env", ".git", "HEAD"]
    assert "backbone is 'nothing'" in fails("train", "demo", *bad, "--to", str(tmp_path / "new"))
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("command", ["report", "recipes"])
def test_help_is_known_behind_a_name(command: str, says) -> None:
    assert says(command, "demo", "--help").startswith(f"usage: tuplet {command} ")


def test_a_full_disk_says_which_run_to_go_on_with(tiny: RunConfig, tmp_path: Path, fails) -> None:
    (tmp_path / "config.yaml").write_text(write_config(tiny))
    arguments = ["train", "--config", str(tmp_path / "config.yaml"), "--to", str(tmp_path / "run")]
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with mock.patch("tuplet.training.run_folder.Run.save_checkpoint", side_effect=full):
        error = fails(*arguments)
    assert error == (
        "tuplet: No space left on device; want room on the disk; resume with: tuplet train --resume"
        f" {tmp_path / 'run'}\n"
    )


def test_ctrl_c_is_answered_by_every_command(capsys) -> None:
    with (
        mock.patch("tuplet.cli.commands.evaluate.read_embeddings", side_effect=KeyboardInterrupt),
        pytest.raises(SystemExit) as stop,
    ):
        main(["evaluate", __file__])
    assert stop.value.code == 130
    assert capsys.readouterr().err == "\nstopped\n"


def test_a_device_that_is_not_there(fails, monkeypatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    error = fails("train", "demo", "--compute.accelerator", "cuda")
    assert error == "tuplet: there is no CUDA device here; want --compute.accelerator cpu\n"
