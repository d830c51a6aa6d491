"""Canaries: one for each private name of another library, so that a release that changes it fails here and says so."""

from __future__ import annotations

import ast
import gc
import subprocess
import sys
from collections.abc import Callable
from functools import wraps
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from torch import nn

from fusetune import _private

CANARIES: set[str] = set()


def canary(name: str, library: str, used_by: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Have a test fail with what changed and what depends on it.

    Args:
        name: the function of `fusetune._private`.
        library: whose private names it uses.
        used_by: what depends on it.
    """
    CANARIES.update(name.split())

    def decorated(test: Callable[..., None]) -> Callable[..., None]:
        @wraps(test)
        def run(*args: object, **kwargs: object) -> None:
            try:
                test(*args, **kwargs)
            except pytest.skip.Exception:
                raise
            except BaseException as error:
                changed = f"{library} {version(library)} changed what fusetune._private.{name} relies on"
                pytest.fail(f"{changed}; {used_by} depend on it: {type(error).__name__}: {error}")

        return run

    return decorated


class TwoNames(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = self.second = nn.Linear(3, 3)
        self.register_module("third", None)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(values))


@canary("children", "torch", "8-bit encoders")
def test_children() -> None:
    module = TwoNames()
    assert _private.children(module) == {"first": module.first, "second": module.first, "third": None}


IMPORTED = """
import multiprocessing
from fusetune import _private
print(_private.imports_main(), flush=True)
if multiprocessing.parent_process() is None:
    process = multiprocessing.get_context("spawn").Process(target=print)
    process.start(), process.join()
"""


@canary("imports_main", "pytest", "the error of scripts without a main guard")
def test_imports_main(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(IMPORTED)
    done = subprocess.run([sys.executable, tmp_path / "script.py"], capture_output=True, text=True, timeout=100)
    assert done.stdout.split() == ["False", "True"], done.stderr


@canary("shallow_copy", "torch", "8-bit encoders and trees beside a network")
def test_shallow_copy() -> None:
    module, values = TwoNames(), torch.randn(2, 3)
    wanted = module(values)
    other = _private.shallow_copy(module, {"second": nn.Identity()})
    torch.testing.assert_close(other(values), module.first(values))
    other.first = nn.Identity()
    assert torch.equal(module(values), wanted) and torch.equal(other(values), values)
    nn.utils.parametrizations.weight_norm(module.first)
    assert _private.shallow_copy(module).first is module.first


@canary("num_changes", "torch", "predictions in 8-bit integers, which are packed anew after a change")
def test_num_changes() -> None:
    tensor = torch.zeros(3)
    before = _private.num_changes(tensor)
    tensor.add_(1)
    assert _private.num_changes(tensor) > before


@canary("copy_all", "torch", "updates that are taken back")
def test_copy_all() -> None:
    targets = [torch.zeros(2), torch.zeros(3, 1)]
    _private.copy_all(targets, [torch.ones(2), torch.full((3, 1), 2.0)])
    assert targets[0].tolist() == [1, 1] and targets[1].flatten().tolist() == [2, 2, 2]


@canary("has_vnni has_fast_bf16", "torch", "the choice of int8 and bf16 on a processor")
def test_what_a_processor_has() -> None:
    assert isinstance(_private.has_vnni(), bool) and isinstance(_private.has_fast_bf16(), bool)
    if Path("/proc/cpuinfo").is_file() and torch.backends.cpu.get_cpu_capability() == "AVX512":
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8")
        assert _private.has_vnni() == ("avx512_vnni" in flags)
        assert _private.has_fast_bf16() == ("avx512_bf16" in flags or "amx_tile" in flags)


@canary("pack_int8 int8_products", "torch", "8-bit encoders")
def test_int8_products_are_exact_sums() -> None:
    if not _private.has_vnni():
        pytest.skip("the processor has no AVX512-VNNI")
    torch.manual_seed(0)
    values, weight = torch.randint(-127, 128, (5, 40)), torch.randint(-127, 128, (6, 40))
    packed = _private.pack_int8(weight.to(torch.int8))
    zeros = torch.zeros(6, dtype=torch.int32)
    products = _private.int8_products((values + 128).to(torch.uint8), packed, torch.full((6,), 0.5), zeros)
    assert torch.equal(products, (values @ weight.T) * 0.5)


@canary("has_triton has_cpp_compiler", "torch", "trainer.compile's refusal to begin without a compiler")
def test_compilers() -> None:
    from torch._inductor import config

    assert isinstance(_private.has_triton(), bool)
    with config.patch({"cpp.cxx": ("no-such-compiler",)}):
        assert not _private.has_cpp_compiler()


@canary("allow_recompilations", "torch", "compiled encoders, of which each size of a batch is compiled")
def test_allow_recompilations() -> None:
    import torch._dynamo as dynamo

    with dynamo.config.patch(recompile_limit=2, accumulated_recompile_limit=2):
        _private.allow_recompilations(5)
        assert dynamo.config.recompile_limit == 5 and dynamo.config.accumulated_recompile_limit == 20
        _private.allow_recompilations(3)
        assert dynamo.config.recompile_limit == 5


@canary("compiled_call set_compiled_call", "torch", "compiled encoders")
def test_compiled_calls() -> None:
    module, calls = TwoNames(), []
    assert _private.compiled_call(module) is None
    module.compile(backend=lambda graph, inputs: calls.append(1) or graph.forward)
    compiled = _private.compiled_call(module)
    module(torch.zeros(1, 3))
    assert calls == [1] and compiled is not None
    _private.set_compiled_call(module, None)
    torch.compiler.reset()
    module(torch.zeros(3, 3))
    assert calls == [1]
    _private.set_compiled_call(module, compiled)
    module(torch.zeros(3, 3))
    assert calls == [1, 1]


@canary("is_compiler_error", "torch", "the message where an encoder cannot be compiled")
def test_is_compiler_error() -> None:
    def graph_break(values: torch.Tensor) -> torch.Tensor:
        print(values.sum().item())
        return values

    with pytest.raises(Exception) as caught:
        torch.compile(graph_break, fullgraph=True, backend="eager")(torch.zeros(2))
    assert _private.is_compiler_error(caught.value) and not _private.is_compiler_error(ValueError())


@canary("end_failed_capture", "torch", "CUDA graphs, after a pass that cannot be captured")
def test_end_failed_capture() -> None:
    assert hasattr(torch.cuda, "default_generators")
    generator = torch.Generator()
    assert callable(generator.graphsafe_set_state) and callable(generator.clone_state)
    if not torch.cuda.is_available():
        return
    device = torch.device("cuda", 0)
    drawn = torch.cuda.get_rng_state(device)
    _private.end_failed_capture(device)
    assert torch.equal(torch.cuda.get_rng_state(device), drawn)


@canary("unsynchronised", "torch", "sharded encoders beside replicated parts")
def test_unsynchronised(tmp_path: Path) -> None:
    from torch import distributed
    from torch.nn.parallel import DistributedDataParallel

    module = TwoNames()
    module.other = nn.Linear(2, 2)
    distributed.init_process_group(
        "gloo", store=distributed.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1
    )
    try:
        with _private.unsynchronised(module, ["other.weight"]):
            wrapped = DistributedDataParallel(module)
        assert "other.weight" in wrapped.parameters_to_ignore
    finally:
        distributed.destroy_process_group()
    assert "_ddp_params_and_buffers_to_ignore" not in module.__dict__


def waveform_encoder() -> nn.Module:
    from transformers import Wav2Vec2Config, Wav2Vec2Model

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    convolutions = {"conv_dim": (8, 8), "conv_kernel": (10, 4), "conv_stride": (5, 4)}
    more = {"num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2, "apply_spec_augment": False}
    return Wav2Vec2Model(Wav2Vec2Config(**sizes, **convolutions, **more, feat_extract_norm="layer", layerdrop=0.0))


@canary("waveform_mask", "transformers", "encoders of waveforms in a batch")
def test_waveform_mask() -> None:
    model = waveform_encoder().eval()
    mask = torch.zeros(2, 400, dtype=torch.int64)
    mask[0], mask[1, :200] = 1, 1
    num = model(torch.zeros(2, 400)).last_hidden_state.shape[1]
    real = _private.waveform_mask(model, num, mask)
    assert real.dtype == torch.bool and real.shape == (2, num)
    assert real[0].all() and 0 < int(real[1].sum()) < num


@canary("inputs_not_leaves", "transformers", "adversarial training on sounds")
def test_inputs_not_leaves() -> None:
    model, waves = waveform_encoder().train(), torch.zeros(1, 400, requires_grad=True)
    changed = [module for module in model.modules() if getattr(module, "_requires_grad", False) is True]
    assert changed, "no module has the switch"
    with _private.inputs_not_leaves(model):
        model(waves * 1.0).last_hidden_state.sum().backward()
    assert waves.grad is not None and all(module._requires_grad for module in changed)


@canary("forget_prepared", "accelerate", "fits of one process, which would keep every earlier model in memory")
def test_forget_prepared() -> None:
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    held = accelerator.prepare(nn.Linear(2, 2))
    assert any(held is one for one in accelerator._models)
    _private.forget_prepared(accelerator)
    gc.collect()
    assert not accelerator._models and not accelerator._optimizers and not accelerator._schedulers


@canary("forget_precision", "accelerate", "several fits in one process, each with its own precision")
def test_forget_precision() -> None:
    from accelerate import Accelerator

    for precision in ("no", "bf16", "no"):
        _private.forget_precision()
        assert Accelerator(cpu=True, mixed_precision=precision).mixed_precision == precision


@canary("unwrap_forward", "accelerate", "models that compute in float32 after training in bf16")
def test_unwrap_forward() -> None:
    from accelerate import Accelerator

    _private.forget_precision()
    module = nn.Linear(2, 2)
    prepared = Accelerator(cpu=True, mixed_precision="bf16").prepare(module)
    assert prepared is module and "forward" in module.__dict__, "accelerate no longer wraps the module's own forward"
    _private.unwrap_forward(module)
    _private.forget_precision()
    assert not {
        name for name in module.__dict__ if "forward" in name and not name.startswith(("_forward", "_backward"))
    }
    assert module(torch.zeros(1, 2)).dtype == torch.float32


def test_every_function_has_a_canary() -> None:
    parsed = ast.parse(Path(_private.__file__).read_text(encoding="utf-8"))
    functions = {node.name for node in parsed.body if isinstance(node, ast.FunctionDef)}
    assert functions == CANARIES


def test_a_canary_says_what_changed_and_what_depends_on_it() -> None:
    @canary("", "torch", "8-bit encoders")
    def fails() -> None:
        raise AttributeError("no attribute '_modules'")

    with pytest.raises(pytest.fail.Exception, match=r"torch .* changed .*8-bit encoders depend on it: .*_modules"):
        fails()
