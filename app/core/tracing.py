"""OpenTelemetry spans of requests and runs, if GKLBENCH_TRACING is set. Needs the extra `otel`."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from opentelemetry import trace

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import Span, SpanProcessor, TracerProvider


def configure() -> None:
    """Send this process's spans to the endpoint in the OTEL_ variables, such as OTEL_EXPORTER_OTLP_ENDPOINT.

    Raises:
        ImportError: the extra is not installed.
    """
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415
    from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415

    os.environ.setdefault("OTEL_SERVICE_NAME", "gklbench")
    trace.set_tracer_provider(provider(BatchSpanProcessor(OTLPSpanExporter())))


def provider(processor: SpanProcessor) -> TracerProvider:
    """A provider that passes spans to `processor` without query strings, as in the log."""
    from opentelemetry.sdk import trace as sdk  # noqa: PLC0415

    class WithoutQuery(sdk.SpanProcessor):
        def on_start(self, span: Span, parent_context: Context | None = None) -> None:
            if "url.query" in (span.attributes or {}):
                span.set_attribute("url.query", "REDACTED")

    made = sdk.TracerProvider()
    made.add_span_processor(WithoutQuery())
    made.add_span_processor(processor)
    return made
