"""What a script's text tells of the dataset, the transformer and the batch keys that it uses; it is never run here."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest
from conftest import HEIGHT, WIDTH

from deepfashion_training.deepfashion_dataset import DatasetOptions, DeepFashionDataset
from deepfashion_training.embedded.wardrobe import write_wardrobe
from deepfashion_training.upstream.batch_keys import SAMPLE_KEYS, DatasetUse
from deepfashion_training.upstream.reading import ScriptText
from deepfashion_training.upstream.script import UpstreamError, open_script

HEAD = """
    import absent_package
    from torch.utils.data import DataLoader, Dataset
    from tqdm import tqdm
    KEY = "flat"
    class VitonHDTestDataset(Dataset):
        def __getitem__(self, index):
            return {"flat": 1, "image": 2}
    def parse_args(input_args=None): pass
    def loss_of(batch, scale):
        return batch["flat"] * scale
    def rows_of(loader, count):
        for batch in loader:
            x = batch["flat"]
    def put(batch):
        batch["flat"] = batch["image"]
    def changed(batch):
        batch = wrap(batch)
    def later(batch):
        yield batch["flat"]
    def same(batch):
        return same(batch) if batch is None else batch
    def collate(samples):
        return {"pixels": [sample["flat"] for sample in samples]}
    def loader_of(data, **more):
        return DataLoader(data, **more)
    def main(args):
        data = VitonHDTestDataset(dataroot_path=args.dataroot, phase="train")
        loader = DataLoader(data, batch_size=args.train_batch_size)
"""
LOOP = "        for step, batch in enumerate(loader):\n            "
#: Bodies of main that read ``flat`` from our samples in any case.
READ = {
    "plain": LOOP + "x = batch['flat']",
    "deleted": LOOP + "x = batch['flat']\n            del batch",
    "prepared": "        model, loader = accelerator.prepare(model, loader)\n" + LOOP + "x = batch['flat']",
    "an alias": LOOP + "pair = batch\n            x = pair['flat'].to(0)",
    "a function": LOOP + "x = loss_of(batch, 3)",
    "a function, by name": LOOP + "x = loss_of(scale=3, batch=batch)",
    "a function with the loop": "        rows_of(loader, count=3)",
    "within with": LOOP + "with accelerator.accumulate(model):\n                x = batch['image'], batch['flat']",
    "tqdm": "        for batch in tqdm(loader, desc='x'):\n            x = batch['flat']",
    "epochs": "        for epoch in range(3):\n            for batch in loader:\n                x = batch['flat']",
}
#: Bodies that read it for certain, and that only the run tells of: it names file and line.
LEFT_TO_THE_RUN = {
    "a constant": LOOP + "x = batch[KEY]",
    "keys in turn": LOOP + "for key in ('image', 'flat'):\n                batch[key] = batch[key].to(0)",
    "in its place": LOOP + "batch['flat'] = batch['flat'].to(0)",
    "while": "        while True:\n            for batch in loader:\n                x = batch['flat']",
    "next": "        x = next(iter(loader))['flat']",
    "the dataset": "        x = data[0]['flat']",
    "a loader of a function": "        loader = loader_of(data, shuffle=True)\n" + LOOP + "x = batch['flat']",
    "a batch of a function": LOOP + "x = same(batch)['flat']",
    "collate": "        loader = DataLoader(data, collate_fn=collate)\n" + LOOP + "x = batch['pixels']",
    "moved": LOOP + "batch = {k: v.to(0) for k, v in batch.items()}\n            x = batch['flat']",
    "try": LOOP + "try:\n                x = batch['flat']\n            except RuntimeError:\n                pass",
}
#: Bodies that need not read it, or not from our samples.
NOT_READ = {
    "ours": LOOP + f"x = [batch['image']], {', '.join(f'batch[{key!r}]' for key in SAMPLE_KEYS)}",
    "get": LOOP + "x = batch.get('flat'), batch.get('flat', 0)",
    "asked for": LOOP + "if 'flat' in batch:\n                x = batch['flat']",
    "a condition": LOOP + "x = batch['flat'] if args.flat else batch['image']",
    "caught": LOOP + "try:\n                x = batch['flat']\n            except KeyError:\n                x = 0",
    "put there": LOOP + "batch['flat'] = batch['image']\n            x = batch['flat']",
    "updated": LOOP + "batch.update(flat=batch['image'])\n            x = batch['flat']",
    "updated by something": LOOP + "batch.update(more)\n            x = batch['flat']",
    "another one": LOOP + "batch = encode(batch)\n            x = batch['flat']",
    "another loader": "        loader = DataLoader(other)\n" + LOOP + "x = batch['flat']",
    "a dataset around": "        loader = DataLoader(Around(data))\n" + LOOP + "x = batch['flat']",
    "another collate": "        loader = DataLoader(data, collate_fn=other)\n" + LOOP + "x = batch['flat']",
    "another variable": LOOP + "batch_of = {}\n            x = batch_of['flat']",
    "the key of something": LOOP + "x = batch[args.key]",
    "after the end": LOOP + "break\n            x = batch['flat']",
    "put there by a function": LOOP + "put(batch)\n            x = batch['flat']",
    "put there by something": LOOP + "enrich(batch)\n            x = batch['flat']",
    "put there by an alias": LOOP + "one = batch\n            one['flat'] = 3\n            x = batch['flat']",
    "changed in a function": LOOP + "changed(batch)\n            x = batch['flat']",
    "a generator": LOOP + "x = later(batch)",
    "suppressed": LOOP + "with suppress(KeyError):\n                x = batch['flat']",
    "passed over": LOOP + "if args.ours:\n                continue\n            x = batch['flat']",
    "after a return": "        if args.ours:\n            return\n" + LOOP + "x = batch['flat']",
    "a loop that need not run": LOOP + "for _ in range(args.n):\n                x = batch['flat']",
    "one of two loaders": "        if args.mine:\n            loader = Mine()\n" + LOOP + "x = batch['flat']",
    "collate set later": "        loader.collate_fn = collate\n" + LOOP + "x = batch['flat']",
    "a function inside": "        def loss_of(batch, scale):\n            pass\n" + LOOP + "x = loss_of(batch, 3)",
    "only if called": "        def validate(batch):\n            return batch['flat']\n"
    + LOOP
    + "x = args.v and validate(batch)",
}


def written(folder: Path, body: str, head: str = HEAD) -> Path:
    path = folder / "some_trainer.py"
    path.write_text(textwrap.dedent(head + body + "\n"), encoding="utf-8")
    return path


@pytest.mark.parametrize("name", READ)
def test_a_key_that_no_sample_has_is_named_before_anything_runs(name: str, tmp_path: Path) -> None:
    path = written(tmp_path, READ[name])
    assert DatasetUse(ScriptText(path), "VitonHDTestDataset").foreign_keys == ["flat"]
    with pytest.raises(UpstreamError, match="it reads flat from a batch") as error:
        open_script(path)
    assert "absent_package" not in str(error.value)


def test_keys_of_a_script_with_a_pipeline_of_its_own_are_named(tmp_path: Path) -> None:
    """As in the fork jroessler/catvton-flux."""
    body = """
        loader = torch.utils.data.DataLoader(data, shuffle=False, batch_size=args.train_batch_size)
        if args.train_base_model:
            pipe.transformer, optimizer, loader = accelerator.prepare(pipe.transformer, optimizer, loader)
        for epoch in range(first_epoch, args.num_train_epochs):
            if args.train_base_model:
                pipe.transformer.train()
            for step, batch in enumerate(loader):
                with accelerator.accumulate([pipe.transformer]):
                    size = batch["on_model_image_masked"].shape[0]
                    mask = batch["inpaint_mask"].to(dtype=pipe.vae.dtype)
                    truth, flat = batch["ground_truth_image"].to(0), batch["flatlay_image"].to(0)
                if step >= args.max_train_steps:
                    break
    """
    with pytest.raises(UpstreamError) as error:
        open_script(written(tmp_path, body))
    named = str(error.value).partition("from a batch")[0]
    assert all(key in named for key in ("flatlay_image", "on_model_image_masked", "ground_truth_image"))
    assert "inpaint_mask" not in named


@pytest.mark.parametrize("body", [*NOT_READ.values(), *LEFT_TO_THE_RUN.values()], ids=[*NOT_READ, *LEFT_TO_THE_RUN])
def test_only_what_is_certain_is_refused(body: str, tmp_path: Path) -> None:
    path = written(tmp_path, body)
    assert DatasetUse(ScriptText(path), "VitonHDTestDataset").foreign_keys == []
    with pytest.raises(UpstreamError, match="absent_package"):  # the next thing that is wrong with it
        open_script(path)


def test_the_keys_are_those_of_our_samples(tmp_path: Path) -> None:
    pairs = write_wardrobe(tmp_path / "pairs", rows=9, seed=0, size=(HEIGHT, WIDTH), num_proc=1)
    sample = DeepFashionDataset(str(pairs), "train", size=(HEIGHT, WIDTH), options=DatasetOptions())[0]
    assert set(sample) == set(SAMPLE_KEYS)


def test_arguments_that_our_dataset_does_not_take_are_named(tmp_path: Path) -> None:
    path = written(tmp_path, "        VitonHDTestDataset(args.root, 'train', resolution=512, tokenizer=None)")
    with pytest.raises(UpstreamError, match=r"resolution, tokenizer, and ours takes dataroot_path, phase"):
        open_script(path)


MODELS = "from diffusers import FluxTransformer2DModel, FluxFillPipeline\nfrom accelerate import Accelerator\n"
NEVER = {
    "its own dataset": (
        "        ",
        "class Mine(VitonHDTestDataset): pass\ndef main(args): Mine()",
        "VitonHDTestDataset",
    ),
    "an alias": ("", "Mine = VitonHDTestDataset\ndef main(args): Mine()", "VitonHDTestDataset"),
    "imported where it is used": (
        "",
        "def main(args):\n    from other import VitonHDTestDataset\n    VitonHDTestDataset()",
        "VitonHDTestDataset",
    ),
    "a pipeline": (
        "",
        MODELS + "def main(args):\n    Accelerator(), VitonHDTestDataset()\n    FluxFillPipeline.from_pretrained('x')\n"
        "    def load(models, folder):\n        FluxTransformer2DModel.from_pretrained(folder)\n"
        "    accelerator.register_load_state_pre_hook(load)\n"
        "    isinstance(args, FluxTransformer2DModel)",
        "FluxTransformer2DModel",
    ),
    "no accelerator": (
        "",
        MODELS + "def main(args):\n    VitonHDTestDataset(), FluxTransformer2DModel()",
        "Accelerator",
    ),
}


@pytest.mark.parametrize("name", NEVER)
def test_a_script_that_never_calls_what_is_replaced_is_told_which(name: str, tmp_path: Path) -> None:
    _, text, named = NEVER[name]
    head = "class VitonHDTestDataset: pass\ndef parse_args(a=None): pass\n"
    with pytest.raises(UpstreamError, match=rf"main never (builds|makes a) {named}"):
        open_script(written(tmp_path, head + text, "import absent_package\n"))


def test_a_loader_of_another_kind_is_left_to_the_run(tmp_path: Path) -> None:
    path = written(tmp_path, READ["plain"], HEAD.replace("torch.utils.data", "absent_package"))
    assert DatasetUse(ScriptText(path), "VitonHDTestDataset").foreign_keys == []


@pytest.mark.parametrize(
    "text",
    [
        "def main(args): globals()[args.name]()",
        "def build(args): return VitonHDTestDataset()\ndef main(args): build(args)",
        "class Run:\n    def go(self): VitonHDTestDataset()\ndef main(args): Run().go()",
        "def main(args):\n    rows = [VitonHDTestDataset(x) for x in args.roots]",
        "def main(args):\n    def rows(kind=VitonHDTestDataset): return kind()\n    rows()",
        "def inner(args): VitonHDTestDataset()\nmain = absent_package.wrap(inner)",
        "@absent_package.record\ndef main(args): VitonHDTestDataset()",
        "BUILDERS = {'x': lambda: VitonHDTestDataset()}\ndef build(): VitonHDTestDataset()\nMORE = {'y': build}\n"
        "def main(args): BUILDERS['x'](), MORE['y']()",
        "KINDS = {}\nKINDS['x'] = lambda: VitonHDTestDataset()\ndef main(args): KINDS[args.kind]()",
        "def kept(f): return f\n@kept\ndef build(): VitonHDTestDataset()\ndef main(args): absent_package.run()",
        "import sys\ndef main(args): vars(sys.modules[__name__])[args.kind]()",
        "def main(args):\n    class Run:\n        def __call__(self): VitonHDTestDataset()\n    Run()()",
        "def main(args): getattr(absent_package, 'VitonHDTestDataset')()",
    ],
)
def test_a_script_that_may_call_it_is_not_refused(text: str, tmp_path: Path) -> None:
    head = "class VitonHDTestDataset: pass\ndef parse_args(a=None): pass\n"
    with pytest.raises(UpstreamError, match="No module named 'absent_package'"):
        open_script(written(tmp_path, head + text, "import absent_package\n"))
