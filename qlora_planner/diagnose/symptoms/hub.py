"""Known error lines of the Hub, the disk and the reporters."""

from __future__ import annotations

from qlora_planner.diagnose.symptoms.row import TORCH, TRANSFORMERS, Symptom

ROWS = (
    Symptom(
        "disk",
        r"No space left on device|Errno 28",
        "the disk that holds the Hub's files is full: an 8B model's 16-bit files take 16 GB",
        "export HF_HOME=/a/larger/disk, or `hf cache` to delete what is not needed",
        "https://huggingface.co/docs/huggingface_hub/guides/manage-cache",
    ),
    Symptom(
        "gated-model",
        r"Cannot access gated repo|access a gated repo|is a gated repository|401 Client Error|403 Client "
        r"Error|GatedRepoError|access to model [^\n]{0,200} is restricted|awaiting a review from the repo "
        r"authors",
        "the model is gated: its licence must be accepted with the account whose token is set (a "
        "fine-grained token also needs the right to read gated repositories)",
        "accept the licence on the model's page, then hf auth login",
        "https://huggingface.co/docs/hub/models-gated",
    ),
    Symptom(
        "not-on-hub",
        r"is not a local folder and is not a valid model identifier|Repository Not Found for "
        r"url|RepositoryNotFoundError",
        "no such repository: a misspelt id, a local path that is not there from this folder, or a private "
        "one without a token",
        "check the id on huggingface.co; hf auth login for a private one",
        f"{TRANSFORMERS}/utils/hub.py",
    ),
    Symptom(
        "hub-unreachable",
        r"We couldn'?t connect to 'https://huggingface\.co'|Max retries exceeded with url: "
        r"/|LocalEntryNotFoundError|Temporary failure in name resolution|outgoing traffic has been disabled",
        "the Hub cannot be reached from here (no network, a proxy, HF_HUB_OFFLINE, Kaggle's internet "
        "switch), and the files are not in the cache",
        "switch the network on; or hf download MODEL elsewhere and name the folder; HF_ENDPOINT for a mirror",
        f"{TRANSFORMERS}/utils/hub.py",
    ),
    Symptom(
        "hub-too-many",
        r"429 (?:Client Error|Too Many Requests)|Too Many Requests for url",
        "the Hub limits requests from this address: a shared machine, many processes, or no token",
        "hf auth login; fetch once with hf download, then HF_HUB_OFFLINE=1",
        "https://huggingface.co/docs/hub/rate-limits",
    ),
    Symptom(
        "download-broken",
        r"Consistency check failed|ChunkedEncodingError|IncompleteRead\(|CAS service error",
        "a download broke off, or a full disk cut it",
        "run it again (it goes on where it was); hf download MODEL --force-download; look at df -h",
        "https://github.com/huggingface/huggingface_hub/blob/main/src/huggingface_hub/file_download.py",
        ("huggingface-hub",),
    ),
    Symptom(
        "wandb",
        r"api_key not configured "
        r"\(no-tty\)|wandb\.errors[^\n]{0,60}(?:UsageError|CommError|AuthenticationError)|Use \(1\) Create "
        r"a W&B account",
        "Weights & Biases wants a login: transformers reports there where the package is installed",
        "report_to='none', or wandb login, or WANDB_MODE=offline",
        "https://docs.wandb.ai/support/",
    ),
    Symptom(
        "hub-id",
        r"Repo id must (?:use alphanumeric|be in the form)|HFValidationError",
        "a path was taken for a repository's name: the folder is not there from where this runs",
        "check the path (os.path.isdir); an absolute one, without a slash at its end",
        "https://github.com/huggingface/huggingface_hub/blob/main/src/huggingface_hub/utils/_validators.py",
    ),
    Symptom(
        "hub-404",
        r"404 Client Error|EntryNotFoundError|RevisionNotFoundError",
        "the repository, its revision or that file does not exist",
        "check the name, revision= and the list of files on its page",
        "https://huggingface.co/docs/huggingface_hub/package_reference/utilities",
    ),
    Symptom(
        "disk-full-writing",
        r"inline_container\.cc:\d{1,5}\] \. unexpected pos|PytorchStreamWriter failed "
        r"writing|StorageFull|Disk quota exceeded",
        "the disk (or a quota) was full while a checkpoint was written",
        "df -h and quota; save_total_limit=2; output_dir on a larger disk",
        f"{TORCH}/caffe2/serialize/inline_container.cc",
    ),
)
