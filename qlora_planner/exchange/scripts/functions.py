"""Functions that exported scripts have of their own, as text."""

from __future__ import annotations

# How scripts that train without trl turn a sample into tokens: the same three shapes of samples that trl takes.
TOKENIZE = '''
def tokens_of(sample):
    """Tokens of one sample: `messages`, `prompt` with `completion`, or `text`."""
    if "messages" in sample:
        text = tokenizer.apply_chat_template(sample["messages"], tokenize=False)
        return tokenizer(text, add_special_tokens=False, truncation=True, max_length=SEQ_LEN)
    text = sample["text"] if "text" in sample else sample["prompt"] + sample["completion"]
    return tokenizer(text + tokenizer.eos_token, truncation=True, max_length=SEQ_LEN)


dataset = dataset.map(tokens_of, remove_columns=dataset.column_names)'''
# The same rule by which a plan counts them: linear modules that sit directly in an attention module.
ATTENTION = '''
def attention_modules(model):
    """Full names of the linear modules that sit directly in an attention module."""
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, (torch.nn.Linear, Conv1D))
        and re.search("attention|attn", type(model.get_submodule(name.rpartition(".")[0])).__name__, re.IGNORECASE)
    ]
'''
