"""``GET /metrics``: what the runners and the gateway have done, in totals, for Prometheus.

The runners are asked when somebody asks here, and only then. A rate or a mean over a time is the reader's to form:
the time per token, for example, is ``paddock_runner_step_seconds``, whose every step gives each running answer one.

Trusts: the numbers of a runner to be within their bounds, as decoded; not to be true.
Promises: no series names or stands for a principal, a tenant or anything of a prompt; no two series have the same
    name and labels.
Not here: who may read it (``pipeline``); the format (``core.exposition``).
"""

from collections.abc import Iterator
from typing import Final

import msgspec

from appliance.core.exposition import Kind, Sample, family
from appliance.core.refusals import Reason
from appliance.core.values import RunnerReport
from appliance.gateway.pipeline import Exchange, Pipeline
from appliance.gateway.slots import Slots
from appliance.gateway.tally import Tally

SHORT_DIGEST: Final = 12

Totals = dict[str, float]
"""Field of ``EngineFigures`` -> number."""

_NUMBERS: Final[tuple[tuple[str, Kind, str, str], ...]] = (
    ("waiting", "gauge", "waiting", "Answers that wait for a slot; of an embedding model, requests."),
    ("busy_slots", "gauge", "busy_slots", "Slots in use: the occupancy of the batch."),
    ("slots", "gauge", "slots", "Slots."),
    ("kv_used_cells", "gauge", "used_cells", "Tokens in the KV cache, kept prefixes included."),
    ("kv_cells", "gauge", "cells", "Tokens that the KV cache has room for."),
    ("refused_total", "counter", "refused", "Answers that were refused because the queue was full or too slow."),
    ("cancelled_total", "counter", "cancelled", "Answers that were cancelled."),
    ("failed_total", "counter", "failed", "Answers that ended in an error."),
    ("prompt_tokens_total", "counter", "prompt_tokens", "Tokens of prompts and inputs that were computed."),
    ("cached_tokens_total", "counter", "cached_tokens", "Tokens of prompts that were in the cache."),
    ("cache_hits_total", "counter", "cache_hits", "Answers whose prompt began in the cache."),
    ("answer_tokens_total", "counter", "answer_tokens", "Tokens of answers."),
    ("proposed_tokens_total", "counter", "proposed_tokens", "Tokens that speculation computed ahead."),
    ("accepted_tokens_total", "counter", "accepted_tokens", "Those of them that became part of an answer."),
)
_SUMMARIES: Final = (
    ("queue_seconds", "queue_seconds", "admitted", "From arrival to a slot."),
    ("first_token_seconds", "first_token_seconds", "answered", "From arrival to the first token of the answer."),
    ("step_seconds", "step_seconds", "steps", "One step, which gives every running answer a token."),
    ("step_tokens", "batch_tokens", "steps", "Tokens that one step computed, of prompts and answers together."),
)


class MetricsPage:
    """Makes the page."""

    def __init__(self, pipeline: Pipeline, refusals: Tally, slots: Slots) -> None:
        self._pipeline = pipeline
        self._refusals = refusals
        self._slots = slots

    async def text(self, exchange: Exchange) -> str:
        """Raises what ``Pipeline.reports`` does."""
        reports = await self._pipeline.reports(exchange)
        return "".join((*self._of_gateway(), *_of_runners(reports)))

    def _of_gateway(self) -> Iterator[str]:
        name, text = "paddock_requests_in_flight", "Requests under way, this one included."
        yield family(name, "gauge", text, [Sample({}, self._slots.under_way)])
        totals = self._refusals.totals()
        refused = [Sample({"reason": reason.code}, totals[reason.code]) for reason in Reason]
        yield family("paddock_refusals_total", "counter", "Requests that were refused.", refused)
        name, text = "paddock_stripped_headers_total", "Header fields of proxies, taken away from whoever is none."
        yield family(name, "counter", text, [Sample({}, self._refusals.stripped_headers)])


def _of_runners(reports: tuple[RunnerReport, ...]) -> Iterator[str]:
    silent = sum(report.figures is None for report in reports)
    states = {"answered": len(reports) - silent, "silent": silent}
    alive = [Sample({"state": state}, count) for state, count in states.items()]
    yield family("paddock_runners", "gauge", "Live runners, by whether they told their numbers in time.", alive)
    told = _by_model(reports)
    for name, kind, field, text in _NUMBERS:
        samples = [Sample(_labels(model), totals[field]) for model, totals in told.items()]
        yield family(f"paddock_runner_{name}", kind, text, samples)
    for name, summed, counted, text in _SUMMARIES:
        samples = []
        for model, totals in told.items():
            samples.append(Sample(_labels(model), totals[summed], "_sum"))
            samples.append(Sample(_labels(model), totals[counted], "_count"))
        yield family(f"paddock_runner_{name}", "summary", text, samples)


def _by_model(reports: tuple[RunnerReport, ...]) -> dict[tuple[str, str], Totals]:
    """Runners with the same labels, such as those of one model that was signed anew, are told as one."""
    told: dict[tuple[str, str], Totals] = {}
    for report in reports:
        if report.figures is not None:
            totals = told.setdefault((report.model_name, report.model_digest.hex[:SHORT_DIGEST]), {})
            for field, number in msgspec.structs.asdict(report.figures).items():
                totals[field] = totals.get(field, 0) + number
    return told


def _labels(model: tuple[str, str]) -> dict[str, str]:
    name, digest = model
    return {"model": name, "digest": digest}
