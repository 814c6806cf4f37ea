"""Neurons that read: what they tell apart, what they heed, and what they read nothing in."""

import pytest
import torch
from torch.nn.functional import silu

from docward.tuning import neurons as neurons_module
from docward.tuning.neurons import ASIDE, CALM, Read, _lessons, fit_neurons, harmless, left_out
from heads import drawn


def texts(seed, count, size=16, tokens=12):
    """Texts of states, and a generator for more."""
    return list(drawn(seed, count, tokens, size))


def read_of(prompts, refuse, *, general=None, weights=None, answers=None):
    count = len(prompts)
    return Read(
        texts=prompts,
        answers=answers or [one[:0] for one in prompts],
        refuse=refuse,
        general=torch.zeros(count, dtype=torch.bool) if general is None else general,
        weights=torch.ones(count) if weights is None else weights,
    )


def score(neurons, prompts):
    return torch.stack([neurons.read(one, silu).mean() for one in prompts])


def auc(scores, refuse):
    return float((scores[refuse].unsqueeze(1) > scores[~refuse]).float().mean())


NOTHING = torch.zeros(16, 0)


def test_neurons_tell_what_no_direction_does():
    """Harm is where two things stand together in a token, in other texts each stands alone: the mean states are alike."""
    refuse = torch.arange(900) % 2 == 0
    prompts = texts(0, 900)
    for one, bad in zip(prompts, refuse, strict=True):
        one[:, 2:] *= 0.3
        one[:, 1] = one[:, 0] if bad else -one[:, 0]
    means = torch.stack([one.mean(0) for one in prompts])
    direction = means[:600][refuse[:600]].mean(0) - means[:600][~refuse[:600]].mean(0)
    assert auc(means[600:] @ direction, refuse[600:]) < 0.65
    neurons = fit_neurons(read_of(prompts[:600], refuse[:600]), NOTHING, 16, silu)
    assert auc(score(neurons, prompts[600:]), refuse[600:]) > 0.95


def shortcut(seed=0, count=400):
    """Texts with a sign of harm, and a louder one in seven of ten."""
    refuse, draw = torch.arange(count) % 2 == 0, torch.Generator().manual_seed(seed)
    trap = torch.rand(count, generator=draw) < 0.7
    prompts = texts(seed, count)
    for one, bad, trapped in zip(prompts, refuse, trap, strict=True):
        one[:, 0] += 0.7 if bad else -0.7
        one[:, 1] += (2 if bad else -2) if trapped else 0
    return prompts, refuse, trap


def heard(neurons, feature):
    """How well texts are ranked that differ along one feature alone, by less than either differs while fitting."""
    refuse, prompts = torch.arange(400) % 2 == 0, texts(9, 400)
    for one, bad in zip(prompts, refuse, strict=True):
        one[:, feature] += 0.5 if bad else -0.5
    return auc(score(neurons, prompts), refuse)


def test_neurons_heed_weights():
    prompts, refuse, trap = shortcut()
    even = fit_neurons(read_of(prompts, refuse), NOTHING, 8, silu)
    without = fit_neurons(read_of(prompts, refuse, weights=torch.where(trap, 1e-6, 1.0)), NOTHING, 8, silu)
    assert heard(even, 1) > 0.6
    assert heard(without, 1) < 0.5 < 0.7 < heard(without, 0)  # where few carry the louder sign it may as well count against them


def test_what_is_left_out_is_not_read():
    prompts, refuse, _ = shortcut()
    nothing = torch.nn.functional.one_hot(torch.tensor([1]), 16).T.float()
    neurons = fit_neurons(read_of(prompts, refuse), nothing, 8, silu)
    assert float((neurons.gates @ nothing).abs().max()) < 1e-6 > float((neurons.ups @ nothing).abs().max())
    assert heard(neurons, 0) > 0.7


def test_both_sides_weigh_the_same():
    prompts, refuse, _ = shortcut(count=600)
    few = torch.cat([refuse.nonzero()[:30, 0], (~refuse).nonzero()[:, 0]])
    neurons = fit_neurons(read_of([prompts[one] for one in few], refuse[few]), NOTHING, 8, silu)
    found = score(neurons, prompts) + CALM
    assert float((found[refuse] > 0).float().mean()) > 0.4  # one in eleven is to be refused: unweighed, none is
    assert float((found[~refuse] > 0).float().mean()) < 0.1


def test_a_document_is_told_beside_harmless_text_too(monkeypatch):
    prompts, refuse, _ = shortcut(count=600)
    diluted = [torch.cat([one, *(prompts[other] for other in range(1, 6, 2))]) for one in prompts[300:]]  # a quarter of the text

    def told():
        found = score(fit_neurons(read_of(prompts[:300], refuse[:300]), NOTHING, 8, silu), diluted) + CALM
        return float((found[refuse[300:]] > 0).float().mean()) - float((found[~refuse[300:]] > 0).float().mean())

    mixed = told()
    monkeypatch.setattr(neurons_module, "OWN", 1.0)
    assert mixed > told() + 0.05


def test_in_general_prompts_and_answers_neurons_read_nothing():
    """Though nothing tells them apart from what is refused; what is to be refused does not count, nor general rows as documents."""
    prompts, refuse, _ = shortcut()
    general = torch.arange(400) >= 300
    aside = [one + 3 * torch.nn.functional.one_hot(torch.tensor(5), 16) for one in prompts]
    given = [one if not which else other for one, other, which in zip(prompts, aside, general, strict=True)]
    answers = [other[:4] if not bad else other[:0] for other, bad in zip(aside, refuse, strict=True)]
    neurons = fit_neurons(read_of(given, refuse & ~general, general=general, answers=answers), NOTHING, 8, silu)
    usual, calm = score(neurons, prompts[:300]), score(neurons, aside[:300])
    assert float(usual[refuse[:300]].mean()) > 1.5
    assert float(calm.abs().mean()) < 0.35 * float(usual.abs().mean())


def test_the_means_of_what_is_harmless_are_left_out():
    """That is benign documents, answers to them, and general prompts and their answers; what is to be refused does not count."""
    refuse, general = torch.arange(300) < 100, torch.arange(300) >= 250
    means, answers = drawn(0, 300, 32), drawn(1, 300, 32)
    calm = harmless(means, answers, refuse, general)
    wanted = [means[100:250].mean(0), answers[100:250].mean(0), means[250:].mean(0), answers[250:].mean(0)]
    torch.testing.assert_close(calm, torch.stack(wanted))
    assert len(harmless(means, answers, refuse, general & False)) == 2  # no general rows
    nothing = left_out(calm)
    assert float((calm - calm @ nothing @ nothing.T).norm()) < 1e-3


@pytest.mark.parametrize("frames", [0, 10, 90])
def test_what_is_no_document_weighs_as_much_however_much_there_is(frames):
    prompts, refuse, _ = shortcut(count=40)
    read = read_of(prompts, refuse, answers=[one[:4] for one in prompts[:10]] + [one[:0] for one in prompts[10:]])
    read.frames = texts(3, frames) if frames else []
    lessons, wanted, weights = _lessons(read)
    assert len(lessons) == len(wanted) == len(weights) == 40 + min(40, 10 + frames)
    assert float(weights[wanted.isnan()].sum()) == pytest.approx(ASIDE * 40)
    assert float(weights[wanted == 1].sum()) == pytest.approx(20) == float(weights[wanted == 0].sum())
