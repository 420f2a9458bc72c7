"""Right after an export: does the very file that was written hold this model and this tokenizer?"""

from __future__ import annotations

from functools import partial

import torch

from groundup.tokenizer.chat import render
from groundup.tokenizer.foreign import ForeignTokenizer
from groundup.verify import draw
from groundup.verify.check import Measurement, NotApplicable, also, violations
from groundup.verify.checks.export import extra, hushed, logits_of_both, opened, stops_apart, tokenizers_apart
from groundup.verify.checks.gguf_export import weights_apart
from groundup.verify.handed import Export

PLACES = 64  # of two rows: enough for what differs from place to place, and cheap for a model of a billion


@also("exported-logits-equal-ours", "export")
def these_logits_equal_ours(export: Export) -> Measurement:
    """Largest |logit - transformers' logit| of the very folder, over two rows of 64 tokens, both in fp32."""
    transformers = extra("transformers", "hf")
    config = export.model.config
    tokens = torch.randint(config.vocab_size, (2, min(PLACES, config.context)), generator=draw.generator(7))
    return logits_of_both(export.model, opened(transformers, export.out), tokens)


@also("exported-tokenizer-is-ours", "export")
def this_tokenizer_is_ours(export: Export) -> Measurement:
    """Texts and conversations of which the very folder's tokenizer, opened by transformers, gives other ids or text."""
    transformers = extra("transformers", "hf")
    if isinstance(export.tokenizer, ForeignTokenizer):
        raise NotApplicable("a tokenizer that others trained is copied as it came")
    with hushed(transformers):
        theirs = transformers.AutoTokenizer.from_pretrained(export.out, local_files_only=True)
    return tokenizers_apart(export.tokenizer, theirs, partial(render, export.tokenizer))


@also("exported-model-stops", "export")
def this_model_stops(export: Export) -> Measurement:
    """Ids in the very folder's generation_config.json, config.json and tokenizer that are not those of serving."""
    if isinstance(export.tokenizer, ForeignTokenizer):
        raise NotApplicable("what an imported model stops at was copied as it came")
    return stops_apart(export.out, export.tokenizer)


@also("safetensors-are-as-asked", "export")
def these_tensors_are_the_models(export: Export) -> Measurement:
    """Tensors of the very folder that are not, bit for bit, the model's under Hugging Face's names."""
    from safetensors import safe_open

    from groundup.model.interchange.hf import hf_tensors

    expected, found, seen = hf_tensors(export.model), [], set()
    for path in sorted(export.out.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in list(file.keys()):
                seen.add(name)
                tensor = file.get_tensor(name)
                if name not in expected or not torch.equal(tensor, expected[name].to(tensor.dtype)):
                    found.append(name)
    found += sorted(expected.keys() - seen)
    return violations(found, len(expected))


@also("gguf-holds-the-weights", "gguf")
def this_gguf_holds_the_weights(export: Export) -> Measurement:
    """Largest error of a number of the very file, as the gguf package reads it, in the largest its type can make."""
    gguf = extra("gguf", "gguf")
    return weights_apart(export.model, gguf.GGUFReader(export.out))
