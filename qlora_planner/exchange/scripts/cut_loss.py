"""Cut cross-entropy in a script of its own: what `train.losses.cut_cross_entropy` does, in code that needs nothing."""

CUT_LOSS = """from cut_cross_entropy import linear_cross_entropy
from transformers.modeling_outputs import CausalLMOutputWithPast


def use_cut_cross_entropy(base):
    \"\"\"Compute the loss from what goes into the head, without logits.\"\"\"
    head, decoder, own = base.get_output_embeddings(), base.get_decoder(), base.forward
    softcap = getattr(base.config.get_text_config(), "final_logit_softcapping", None)

    @functools.wraps(own)
    def forward(*args, labels=None, num_items_in_batch=None, **kwargs):
        if labels is None or args:
            return own(*args, labels=labels, **kwargs)
        hidden = decoder(**{**kwargs, "return_dict": True}).last_hidden_state
        reduction = "mean" if num_items_in_batch is None else "sum"
        loss = linear_cross_entropy(hidden, head.weight, labels, softcap=softcap, shift=True, reduction=reduction)
        return CausalLMOutputWithPast(loss=loss if num_items_in_batch is None else loss / num_items_in_batch)

    base.forward = forward


use_cut_cross_entropy(BASE)"""
