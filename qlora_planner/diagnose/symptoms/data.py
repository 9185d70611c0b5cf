"""Known error lines of datasets, templates and batches."""

from __future__ import annotations

from qlora_planner.diagnose.symptoms.row import DATASETS, TORCH, TRANSFORMERS, TRL, Symptom

ROWS = (
    Symptom(
        "pad-token",
        r"Asking to pad but the tokenizer does not have a padding token|Cannot handle batch sizes > 1 if no "
        r"padding token",
        "the tokenizer names no padding token, as those of Llama and Mistral base models do not",
        "tokenizer.pad_token = a reserved token (Llama 3: '<|finetune_right_pad_id|>'), else "
        "tokenizer.eos_token; for classification model.config.pad_token_id too",
        f"{TRANSFORMERS}/tokenization_utils_base.py",
    ),
    Symptom(
        "ragged-batch",
        r"Unable to create tensor, you should probably activate truncation|expected sequence of length "
        r"\d{1,9} at dim \d|Perhaps your features \(`?\w{1,40}`? in this case\) have excessive nesting",
        "rows of a batch differ in length and nothing pads them (mostly labels), or a column holds text or "
        "nested lists",
        "DataCollatorForSeq2Seq(tokenizer) pads labels too; remove the text columns; with trl leave "
        "tokenising to SFTTrainer",
        f"{TRANSFORMERS}/tokenization_utils_base.py",
    ),
    Symptom(
        "chat-template-missing",
        r"tokenizer\.chat_template is not set|Cannot use chat template functions",
        "a base model's tokenizer has no chat template, and the data are chats",
        "take the -Instruct model's tokenizer, or chat_template_path='...' in SFTConfig (trl 0.20 and "
        "newer), or a column of plain text",
        f"{TRANSFORMERS}/tokenization_utils_base.py",
        ("trl", "transformers"),
    ),
    Symptom(
        "chat-roles",
        r"Conversation roles must alternate|System role not "
        r"supported|jinja2\.exceptions\.TemplateError|Only user and assistant roles are supported",
        "this model's template refuses the conversation: no system role (Gemma 2, Mistral 7B v0.1), or two "
        "turns of one role in a row",
        "put the system text before the first user turn, and join turns of one role",
        "https://huggingface.co/docs/transformers/chat_templating",
    ),
    Symptom(
        "assistant-mask",
        r"assistant_only_loss=True`?, but|return_assistant_tokens_mask[^\n]{0,80}generation|template does "
        r"not (?:support|contain) (?:the )?`?\{% generation",
        "assistant_only_loss needs chats, and a template that marks answers with {% generation %}; trl has "
        "such templates for some families only",
        "a messages column; a template with {% generation %}; else completion_only_loss with prompt and completion",
        f"{TRL}/trainer/sft_trainer.py",
        ("trl",),
    ),
    Symptom(
        "long-warning",
        r"Token indices sequence length is longer than the specified maximum sequence length",
        "a warning while tokenising: a row is longer than the tokenizer's limit; it is cut later, by max_length",
        "nothing to do where max_length is set; qlora-plan plan MODEL --data FILE counts how many rows are cut",
        f"{TRANSFORMERS}/tokenization_utils_base.py",
    ),
    Symptom(
        "no-columns",
        r"No columns in the dataset match the model'?s forward|KeyError: 'text'|The batch received was "
        r"empty|Unexpected input keys in examples",
        "the trainer sees none of the columns that it knows: rows are neither text nor messages nor prompt "
        "and completion, or remove_unused_columns dropped them",
        "dataset_text_field='your column' in SFTConfig; qlora-plan plan MODEL --data FILE says what the rows are",
        f"{TRANSFORMERS}/trainer.py",
        ("trl",),
    ),
    Symptom(
        "no-loss",
        r"The model did not return a loss from the inputs",
        "the batch has no labels, or the model has no head (AutoModel in place of AutoModelForCausalLM)",
        "labels in each row (trl makes them), AutoModelForCausalLM",
        f"{TRANSFORMERS}/trainer.py",
    ),
    Symptom(
        "data-format",
        r"Couldn'?t infer the same data file format|JSON parse error|An error occurred while generating the "
        r"dataset|Failed to read file",
        "a file is not what its name says: a JSON array where lines are expected, a broken line, a column "
        "whose type changes from row to row, a mix of formats in the folder",
        "qlora-plan plan MODEL --data FILE names the line; one object a line in .jsonl, one type a column",
        f"{DATASETS}/builder.py",
        ("datasets",),
    ),
    Symptom(
        "data-columns",
        r"All the data files must have the same columns|DatasetGenerationCastError|cannot mix list and "
        r"non-list|changed from \w{1,20} to \w{1,20} in row",
        "files or rows of one dataset have different columns or types",
        "load_dataset(..., data_files=[those alike]); make content text in every row, or a list in every row",
        f"{DATASETS}/exceptions.py",
        ("datasets",),
    ),
    Symptom(
        "data-script",
        r"Dataset scripts are no longer supported",
        "datasets 4 and newer run no loading script",
        "a repository (or its refs/convert/parquet revision) with parquet files; or pip install "
        "'datasets<4' for one you trust",
        f"{DATASETS}/load.py",
        ("datasets",),
    ),
    Symptom(
        "data-fsspec",
        r"Loading a dataset cached in a LocalFileSystem is not supported|Invalid pattern: '\*\*' can only "
        r"be an entire path component",
        "datasets and fsspec of different ages",
        "pip install -U datasets fsspec",
        f"{DATASETS}/builder.py",
        ("datasets", "fsspec"),
    ),
    Symptom(
        "data-worker",
        r"One of the subprocesses has abruptly died during map",
        "a worker of dataset.map was killed: mostly the host's memory, else a crash in native code",
        "num_proc=1 (dataset_num_proc) shows the cause; fewer processes need less memory",
        f"{DATASETS}/utils/py_utils.py",
        ("datasets",),
    ),
    Symptom(
        "empty-data",
        r"num_samples should be a positive integer value, but got num_samples=0|Invalid key: \d{1,9} is out "
        r"of bounds for size 0|Invalid index: 0 for size 0",
        "no row is left: a filter, max_length, packing of too few tokens, or columns that the trainer drops",
        "len(dataset) after each step; qlora-plan plan MODEL --data FILE counts what is kept",
        f"{TORCH}/torch/utils/data/sampler.py",
        ("datasets",),
    ),
    Symptom(
        "data-key",
        r"KeyError: "
        r"'(?P<name>messages|conversations|instruction|prompt|completion|response|input|output|chosen|"
        r"rejected|label|labels|input_ids)'",
        "no row has a column {name}: the file's columns are called otherwise, or the split is another one",
        "print(dataset.column_names); dataset.rename_column(...)",
        "https://huggingface.co/docs/trl/dataset_formats",
        ("trl", "datasets"),
    ),
    Symptom(
        "mask-size",
        r"Attention mask should be of size|is invalid for input of size \d{4,12}",
        "mask or shape do not match the tokens: rows beyond max_position_embeddings, packing with an "
        "attention that knows none, or patched attention of another version",
        "max_length at most the model's; packing with attn_implementation='flash_attention_2'; pip install "
        "-U transformers",
        f"{TRANSFORMERS}/masking_utils.py",
        ("transformers",),
    ),
    Symptom(
        "generation-length",
        r"Input length of input_ids is \d{1,9}, but `?max_length`? is set to|generation call will exceed "
        r"the model'?s predefined maximum",
        "max_length counts the prompt too",
        "max_new_tokens=256 in place of max_length",
        f"{TRANSFORMERS}/generation/utils.py",
    ),
    Symptom(
        "unused-inputs",
        r"`?model_kwargs`? are not used by the model: \[",
        "the tokenizer gives a key that this model does not take (token_type_ids)",
        "tokenizer(..., return_token_type_ids=False)",
        f"{TRANSFORMERS}/generation/utils.py",
    ),
)
