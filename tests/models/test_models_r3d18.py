"""R3D-18 against a plain re-implementation from the published layers, and the U-Net on it."""

import pytest
import torch
from torch.nn import functional as F

from pneumoscope.errors import InputError, ModelError
from pneumoscope.models.r3d18_unet import ENCODER_PARTS, GREY_DEVIATION, GREY_MEAN, R3D18, R3D18UNet, R3D18UNetConfig
from pneumoscope.models.weights import carry_published
from pneumoscope.training.tasks import train_mode

SMALL = R3D18UNetConfig(2, 4, (8, 6, 5, 3))


def shaken(model):
    """Statistics and scales as after training, none at its neutral value."""
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm3d):
            torch.nn.init.uniform_(module.running_mean, -0.3, 0.3)
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.uniform_(module.bias, -0.3, 0.3)
    return model.eval()


def net(config=SMALL, seed=0):
    torch.manual_seed(seed)
    return shaken(R3D18UNet(config))


def plain_r3d18(w, x):
    """The published network from its description: maps behind the four layers, and the logits."""

    def norm(x, name):
        return F.batch_norm(x, *(w[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")))

    x = F.relu(norm(F.conv3d(x, w["stem.0.weight"], stride=(1, 2, 2), padding=(1, 3, 3)), "stem.1"))
    maps = []
    for layer in (1, 2, 3, 4):
        for block in (0, 1):
            name = f"layer{layer}.{block}"
            stride = 2 if layer > 1 and block == 0 else 1
            y = F.relu(norm(F.conv3d(x, w[f"{name}.conv1.0.weight"], stride=stride, padding=1), f"{name}.conv1.1"))
            y = norm(F.conv3d(y, w[f"{name}.conv2.0.weight"], padding=1), f"{name}.conv2.1")
            if stride == 2:
                x = norm(F.conv3d(x, w[f"{name}.downsample.0.weight"], stride=2), f"{name}.downsample.1")
            x = F.relu(y + x)
        maps.append(x)
    return maps, F.linear(F.adaptive_avg_pool3d(x, 1).flatten(1), w["fc.weight"], w["fc.bias"])


def test_the_published_tensors_by_name_shape_and_number():
    with torch.device("meta"):
        state = R3D18().state_dict()
        parameters = sum(p.numel() for p in R3D18().parameters())
    assert len(state) == 122
    assert parameters == 33_371_472
    assert tuple(state["stem.0.weight"].shape) == (64, 3, 3, 7, 7)
    assert tuple(state["layer1.1.conv2.0.weight"].shape) == (64, 64, 3, 3, 3)
    assert tuple(state["layer2.0.downsample.0.weight"].shape) == (128, 64, 1, 1, 1)
    assert tuple(state["layer4.0.conv1.0.weight"].shape) == (512, 256, 3, 3, 3)
    assert tuple(state["fc.weight"].shape) == (400, 512)
    assert "layer1.0.downsample.0.weight" not in state
    assert "stem.1.num_batches_tracked" in state


def test_feature_shapes_worked_out_by_hand():
    with torch.device("meta"):
        maps = R3D18(None).features(torch.zeros(1, 3, 18, 112, 112))  # the paper's first input
    assert [tuple(m.shape[1:]) for m in maps] == [(64, 18, 56, 56), (128, 9, 28, 28), (256, 5, 14, 14), (512, 3, 7, 7)]


@pytest.mark.parametrize("size", [(8, 32, 32), (5, 19, 33), (1, 1, 1)])
def test_the_same_outputs_as_the_plain_re_implementation(size):
    torch.manual_seed(3)
    model = shaken(R3D18(classes=7, width=6))
    x = torch.randn(2, 3, *size)
    with torch.no_grad():
        maps, logits = plain_r3d18(model.state_dict(), x)
        assert torch.allclose(model(x), logits, atol=1e-5)
        for own, other in zip(model.features(x), maps, strict=True):
            assert torch.allclose(own, other, atol=1e-5)


def test_tripled_and_summed_stems_give_the_same_numbers():
    x = torch.rand(1, 1, 5, 24, 20)
    triple, summed = net(), net(R3D18UNetConfig(2, 4, (8, 6, 5, 3), stem="sum"))
    assert list(triple.state_dict()) == list(summed.state_dict())
    assert torch.allclose(triple(x), summed(x), atol=1e-5)


def test_the_whole_network_by_functional_calls():
    model = net()
    w = model.state_dict()
    x = torch.rand(1, 1, 6, 18, 22)
    grey = (x - GREY_MEAN) / GREY_DEVIATION
    encoder = {n.removeprefix("encoder."): t for n, t in w.items() if n.startswith("encoder.")}
    encoder |= {"fc.weight": torch.zeros(1, 32), "fc.bias": torch.zeros(1)}

    def conv(x, name):
        return F.conv3d(x, w[f"{name}.weight"], w[f"{name}.bias"], padding=w[f"{name}.weight"].shape[-1] // 2)

    maps, _ = plain_r3d18(encoder, grey.expand(-1, 3, -1, -1, -1))
    out = F.relu(conv(F.relu(conv(maps[3], "bottom.0")), "bottom.2"))
    for n, (skip, stride) in enumerate([(maps[2], 2), (maps[1], 2), (maps[0], 2), (grey, (1, 2, 2))]):
        up = F.relu(F.conv_transpose3d(out, w[f"up.{n}.grow.weight"], w[f"up.{n}.grow.bias"], stride=stride))
        up = up[..., : skip.shape[2], : skip.shape[3], : skip.shape[4]]
        mean, var = skip.mean((2, 3, 4), keepdim=True), skip.var((2, 3, 4), unbiased=False, keepdim=True)
        normed = (skip - mean) / torch.sqrt(var + 1e-5)
        normed = normed * w[f"up.{n}.norm.weight"].view(-1, 1, 1, 1) + w[f"up.{n}.norm.bias"].view(-1, 1, 1, 1)
        out = torch.cat((up, normed), 1)
        out = F.relu(conv(F.relu(conv(out, f"up.{n}.convolutions.0")), f"up.{n}.convolutions.2"))
    out = F.relu(out + conv(F.relu(conv(out, "final.conv1")), "final.conv2"))
    assert torch.allclose(model(x), conv(out, "final.head"), atol=1e-4)


def test_published_weights_fill_the_encoder(tmp_path):
    torch.manual_seed(5)
    source = shaken(R3D18(classes=9, width=4))
    torch.save(source.state_dict(), tmp_path / "w.pth")
    model = net()
    origin = carry_published(model.encoder, "r3d_18", tmp_path / "w.pth")
    assert set(origin.report.unused) == {"fc.weight", "fc.bias"}
    assert len(origin.report.loaded) == 120
    x = torch.rand(1, 3, 4, 16, 16)
    assert torch.equal(model.encoder.features(x)[3], source.features(x)[3])


def test_weights_of_another_network_are_refused(tmp_path):
    torch.save(R3D18(classes=9, width=2).state_dict(), tmp_path / "w.pth")
    with pytest.raises(ModelError, match="does not hold r3d_18"):
        carry_published(net().encoder, "r3d_18", tmp_path / "w.pth")


def test_the_encoder_is_frozen_by_name():
    model = net()
    assert model.frozen_parts() == tuple(f"encoder.{part}" for part in ENCODER_PARTS)
    assert model.frozen_parts("layer1") == ("encoder.stem", "encoder.layer1")
    with pytest.raises(InputError, match="no part 'fc'"):
        model.frozen_parts("fc")
    before = {n: t.clone() for n, t in model.state_dict().items()}
    train_mode(model, frozenset(model.frozen_parts()))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not any(name.startswith(f + ".") for f in model.frozen_parts()))
    optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model(torch.rand(1, 1, 4, 16, 16)).square().sum().backward()
    optimiser.step()
    changed = {n.split(".")[0] for n, t in model.state_dict().items() if not torch.equal(t, before[n])}
    assert changed == {"bottom", "up", "final"}, "and no running mean of the encoder either"
