"""HTTP over the runtime, in OpenAI's wire format; it validates, streams, counts, and knows no tensors."""
