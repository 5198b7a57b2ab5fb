"""Every code block of the documents for people: which journey runs it, or why none does."""

from __future__ import annotations

from dataclasses import dataclass, field

README, INSTALL, NODE, CLIENTS, OPERATIONS, TROUBLE = DOCUMENTS = (
    "README.md",
    "docs/install.md",
    "docs/node.md",
    "docs/clients.md",
    "docs/operations.md",
    "docs/troubleshooting.md",
)
Key = tuple[str, str, str]
"""Document, section, and how the block's first line begins."""


@dataclass(frozen=True)
class Step:
    """One block, run by one person; each of ``says`` must be in what it prints."""

    who: str
    block: Key
    says: tuple[str, ...] = ()
    typed: str = ""
    """What is entered when a passphrase is asked for."""
    more: str = ""
    """What the reader of the document writes below it."""
    stand_ins: dict[str, str] = field(default_factory=dict)
    """Texts that are this machine's instead of those of the documents."""


FIRST_TOKEN = (
    Step("operator", (README, "Run it for real", "fabric-server up"), ("sk-fab-", "fjt1_")),
    Step(
        "owner",
        (README, "Run it for real", "fabric-client join"),
        ("registered", "gpu.example.org", "echo", "aused"),
    ),
    Step("owner", (NODE, "When it pauses", "$ fabric-client pause"), ("esum",)),
    Step(
        "user",
        (README, "Run it for real", "from openai"),
        ("echo",),
        more="print(client.models.list().data[0].id)",
    ),
    Step("user", (CLIENTS, "curl", "curl --fail"), ('"content":', "data: [DONE]")),
)
"""From nothing to the first token."""

LATER = (
    Step(
        "user",
        (CLIENTS, "openai-python", "from openai"),
        ("True",),
        more="stream = client.chat.completions.create(model=os.environ['FABRIC_MODEL'],"
        " stream=True, messages=[{'role': 'user', 'content': 'Say hello.'}])\n"
        "print('hello' in ''.join(one.choices[0].delta.content or '' for one in stream))",
    ),
    Step(
        "user",
        (CLIENTS, "In a terminal", "export FABRIC_URL"),
        ("hello",),
        stand_ins={
            "fabric-client chat   ": "echo hello | fabric-client chat   ",
            "git diff": "echo hello",
            "tiny": "echo",
        },
    ),
    Step(
        "operator",
        (OPERATIONS, "What happened to a request", "fabric-server requests --key"),
        ("The ledger has none of these", "echo", "default", "prompt_tokens"),
    ),
    Step(
        "operator",
        (OPERATIONS, "How long things are kept", "fabric-server retention show"),
        ("ledger",),
    ),
    Step("operator", (OPERATIONS, "Hardening", "fabric-server keys create bob"), ("sk-fab-",)),
    Step("operator", (OPERATIONS, "In the kernel", "fabric-server guard install"), ("18080",)),
    Step(
        "operator",
        (OPERATIONS, "Backing up", "mkdir"),
        ("fabric-backup-", "gpu.example.org"),
        typed="six words that nobody guesses",
        stand_ins={"/var/": "var/"},
    ),
    Step(
        "operator",
        (OPERATIONS, "Replacing a server without an outage", "fabric-server up --takeover"),
        ("gpu.example.org",),
    ),
    Step(
        "operator",
        (OPERATIONS, "When the server's address changes", "fabric-server up --address new"),
        ("new.example.org",),
    ),
    Step("second_operator", (OPERATIONS, "One port", "fabric-server up --one-port"), ("443",)),
    Step(
        "second_operator",
        (OPERATIONS, "One port", "curl --cacert"),
        ('"data"',),
        stand_ins={"ca.pem": ".fabric/server/certs/ca.pem"},
    ),
    Step(
        "second_owner",
        (NODE, "Starting with the machine", "fabric-client join fjt1_…"),
        ("[Service]", "Restart=on-failure"),
        stand_ins={"install-service": "install-service --user --dry-run"},
    ),
)
"""The days after it, in this order."""

SETTINGS_BLOCKS: dict[Key, str] = {
    (NODE, "For the owner of a node", "name ="): "node",
    (NODE, "What it offers", "models ="): "node",
    (NODE, "Its engines", "engine ="): "node",
    (OPERATIONS, "Aliases", "aliases ="): "server",
}
"""Settings files, which the program must take as they are."""

_INSTALL_TEST = "tests/install.py runs it in new Debian roots (make install-test)"
_MARKED = "the document says that it was not run; these systems are not here"
_EXAMPLES = "tests/end_to_end/clients/test_examples.py runs it"
_SERVICE = "needs systemd as process 1; tests/end_to_end/test_service.py runs these commands"
_UPGRADE = "needs wheels of two releases; tests/packaging/test_upgrade.py installs them"

NOT_RUN: dict[Key, str] = {
    (README, "Fabric", "  client"): "a picture",
    (TROUBLE, "When something does not work", "ok    dns"): "output;"
    " tests/journeys/broken_evening.py compares it",
    (README, "Try it", "make run"): "tests/end_to_end/test_make_run.py runs it",
    (README, "Try it", "make test"): "it runs this test",
    (
        INSTALL,
        "Installing",
        "make dist",
    ): "tests/packaging/test_wheel.py runs it",
    (
        OPERATIONS,
        "Workers",
        "fabric-server up --workers 2",
    ): "tests/end_to_end/test_workers.py runs it",
    (INSTALL, "A server", "sha256sum"): _INSTALL_TEST,
    (INSTALL, "A node", "apt install pipx"): _INSTALL_TEST,
    (INSTALL, "A node", "sha256sum"): _INSTALL_TEST,
    (INSTALL, "With uv", "pipx install uv"): _INSTALL_TEST,
    (INSTALL, "With uv", "~/.local/bin/uv tool"): _INSTALL_TEST,
    (INSTALL, "Other systems", "sudo dnf"): _MARKED,
    (INSTALL, "Other systems", "brew"): _MARKED,
    (INSTALL, "Other systems", "winget"): _MARKED,
    (INSTALL, "A node as one file", "python3 fabric-client.pyz"): _INSTALL_TEST,
    (
        INSTALL,
        "A node as one file",
        "make node-pex PLATFORMS",
    ): "fetches packages for three systems",
    (
        INSTALL,
        "Going back",
        "fabric-server: the store",
    ): "tests/packaging/test_going_back.py",
    (NODE, "Starting with the machine", "sudo fabric-client join"): _SERVICE,
    (CLIENTS, "openai for Node.js", "import OpenAI"): _EXAMPLES,
    (CLIENTS, "ollama-python", "from ollama"): _EXAMPLES,
    (CLIENTS, "anthropic-python", "from anthropic"): _EXAMPLES,
    (CLIENTS, "LangChain", "model ="): _EXAMPLES,
    (CLIENTS, "LlamaIndex", "from llama_index"): _EXAMPLES,
    (CLIENTS, "The ollama program", "server {"): "for nginx; tests/end_to_end/clients/"
    "test_ollama_cli.py adds the key by a proxy of its own",
    (OPERATIONS, "Two ways to run it", "FABRIC_SERVER_STORE"): "needs three back ends;"
    " tests/end_to_end/test_full_stack.py runs these programs with them",
    (OPERATIONS, "From Let's Encrypt", "fabric-server up"): "asks a public CA;"
    " tests/server/acme/ does it with Pebble",
    (OPERATIONS, "As a service", "sudo fabric-server init"): _SERVICE,
    (OPERATIONS, "Upgrading", "sha256sum"): _UPGRADE,
    (OPERATIONS, "From 0.1.0", "/opt/fabric/green"): _UPGRADE,
    (OPERATIONS, "Replacing a server without an outage", "[Unit]"): "needs systemd;"
    " tests/end_to_end/test_takeover.py runs its command",
    (OPERATIONS, "Replacing a server without an outage", "systemctl"): "needs systemd",
    (OPERATIONS, "Backing up", "# /etc/systemd"): "needs systemd; its command is run above it",
    (OPERATIONS, "The consumer", "fabric-consumer"): "needs Kafka;"
    " tests/end_to_end/test_full_stack.py runs it",
}
