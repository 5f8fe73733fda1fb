"""Routers of experts are kept even while a model is trained: the loss of transformers' Mixtral and its coefficient."""

import pytest
import torch
import transformers

import limelight
from limelight import Packed
from limelight.models.families import FAMILIES, Published
from limelight.nn import routings, z_loss
from limelight.training import Batch, Objective

SIZES = {
    "vocab_size": 90, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None,
}  # fmt: skip


def batch(tokens=21):
    ids = torch.randint(90, (1, tokens + 1), generator=torch.Generator().manual_seed(1))
    targets = ids[:, 1:].clone()
    targets[0, 3:5] = -100  # asks nothing
    return Batch(ids[:, :-1], targets, Packed((tokens,)))


def test_the_loss_is_that_of_transformers(tmp_path):
    torch.manual_seed(0)
    config = transformers.MixtralConfig(**SIZES, router_aux_loss_coef=0.3, output_router_logits=True)
    theirs = transformers.MixtralForCausalLM(config)
    theirs.save_pretrained(tmp_path)
    network = limelight.load(tmp_path).network.float().requires_grad_()
    objective, read = Objective(network).train(), batch()
    expected = theirs.train()(input_ids=read.tokens, labels=read.tokens, shift_labels=read.targets)
    assert expected.aux_loss > 1
    loss = objective(read) / 19
    torch.testing.assert_close(loss, expected.loss)
    ours = network.layers[1].feed_forward.inner.router.weight
    router = theirs.model.layers[1].mlp.gate.weight
    torch.testing.assert_close(*(torch.autograd.grad(one, weight)[0] for one, weight in
                                 ((loss, ours), (expected.loss, router))), rtol=1e-4, atol=1e-6)  # fmt: skip
    # An evaluation is of the tokens alone.
    expected = theirs.eval()(
        input_ids=read.tokens, labels=read.tokens, shift_labels=read.targets, output_router_logits=False
    )
    torch.testing.assert_close(objective.eval()(read) / 19, expected.loss)


@pytest.mark.parametrize(("balance", "z"), [(0.0, 0.0), (0.0, 0.2)])
def test_coefficients_are_settings_of_the_model(balance, z):
    values = {**SIZES, "router_aux_loss_coef": balance, "router_z_loss_coef": z}
    config = FAMILIES["mixtral"].configure(Published("test", values))
    message = FAMILIES["mixtral"].publish(config)
    assert message["router_aux_loss_coef"] == balance
    assert message.get("router_z_loss_coef", 0.0) == z
    torch.manual_seed(0)
    objective, read = Objective(FAMILIES["mixtral"].shape(config)), batch()
    plain = objective.eval()(read)
    with routings() as decided:
        found = objective.train()(read)
    expected = sum(z_loss(routing) for _, routing in decided) / 3
    torch.testing.assert_close(found, plain + 19 * z * expected)
