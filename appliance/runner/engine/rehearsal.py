"""Every way of drawing, once, before the first request: what Python and numpy load late must be loaded while they can.

Trusts: its caller for a row of finite logits.
Promises: afterwards drawing needs no import and no file.
Not here: decoding (``engine.trial``).
"""

from typing import Final

import numpy as np

from appliance.core.values import Sampling
from appliance.runner.engine.candidates import Candidates, Row, Rules
from appliance.runner.engine.constraint import compile_constraint
from appliance.runner.engine.logprobs import sampled_token
from appliance.runner.engine.model import Model
from appliance.runner.engine.sampling import NOT_FINITE, Sampler, draw_rows
from appliance.runner.engine.search import Goal, Search

_SETTINGS: Final = (
    Sampling(),
    Sampling(temperature=0.0),
    Sampling(temperature=0.0, presence_penalty=1.0),
    Sampling(top_k=0, frequency_penalty=-1.0, logprobs=20),
    Sampling(typical_p=0.9, repeat_penalty=1.1, logit_bias=((0, 1.0), (1, -100.0)), ignore_eos=True, logprobs=0),
    Sampling(mirostat=1),
    Sampling(mirostat=2),
)
_GRAMMAR: Final = r'root ::= "<" [^<]* | [a-z \u4e00-\u9fff]+'


def rehearse(model: Model, candidates: Candidates, row: Row) -> bool:
    """Whether a row of logits could be drawn from in every way."""
    prompt = np.zeros(2, np.int32)
    compiled = compile_constraint(model, candidates.vocabulary, _GRAMMAR)
    samplers = [Sampler(settings, prompt, None, candidates) for settings in _SETTINGS]
    samplers += [Sampler(settings, prompt, compiled.clone(), candidates) for settings in _SETTINGS]
    search = Search(row, compiled, candidates, Rules(never=compiled.never), Goal(len(row)))
    search.finish()
    search.keep_row()
    compiled.close()
    begun = draw_rows(samplers, np.broadcast_to(row, (len(samplers), len(row))))
    draws = [sampler.finish(drawn) for sampler, drawn in zip(samplers, begun, strict=True)]
    draw_rows(samplers[:1] * 2, np.stack([row, row]))
    failures = [sampler.failure for sampler, drawn in zip(samplers, draws, strict=True) if drawn is None]
    for drawn in draws:
        if drawn is not None and drawn.logprobs is not None:
            sampled_token(drawn.logprobs, model.piece)
    for sampler in samplers:
        sampler.close()
    return NOT_FINITE not in failures
