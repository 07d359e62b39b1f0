"""Secrets wherever a user may put one: in no file and no message afterwards."""

import string
from collections.abc import Sequence
from pathlib import Path
from random import Random

from campaign.runs import run
from campaign.tries import Held, Part, Try

LETTERS = string.ascii_letters + string.digits
TOKENS = ("hf_", "sk-", "ghp_", "glpat-", "gsk_")  # what a token looks like, whatever it is called
NAMES = ("api_key", "hub_token", "password", "auth", "client_secret", "MY_TOKEN", "Authorization", "x-api-key")
VARIABLES = ("HF_TOKEN", "WANDB_API_KEY", "OPENAI_API_KEY", "MY_PASSWORD", "SERVICE_SECRET")
JUDGE = ("judge=endpoint", "judge.model=m", "judge.retries=0", "judge.timeout_s=2")
NOWHERE = "localhost:9"  # where no server answers


def attempt(one: Try) -> Held:
    """Plant a secret, run, and look for it in all that there is then."""
    random = one.random
    secret = "".join(random.choices(LETTERS, k=random.randrange(24, 40)))
    token = random.choice(TOKENS) + secret
    name, variable = random.choice(NAMES), random.choice(VARIABLES)
    variables: dict[str, str] = {}
    by_name = [
        (f"+judge.extra.{name}={secret}",),
        (f"+judge.extra={{{name}: {secret}}}",),
        (f"+judge.extra.headers={{a: 1, {name}: {secret}}}",),
        (f"+judge.extra.{name}=[{secret}",),  # which cannot be read
        (f'+judge.extra.{name}="{secret}',),
        (f"+judge.extra={{{name}: [{secret}",),
        (f"judge.extra.{name}={secret}",),  # of a key that does not exist
        (f"+trainer.extra.{name}={secret}",),
        (f"judge.base_url=http://me:{secret}@{NOWHERE}/v1",),
        (f"judge.base_url=http://{NOWHERE}/v1?{name.lower()}={secret}",),
        (f"+judge.extra.extra_headers.Authorization='Bearer {secret}'",),
        ("-m", f"+judge.extra.{name}={secret},other"),
        ("-m", "seed=1,2", f"+hydra.job.env_set.{variable}={secret}"),
    ]
    by_looks = [
        (f"tracker.notes='mine is {token}'",),
        (f"tracker.tags=[a,{token}]",),
        (f"+trainer.extra.note={token}",),
        (f"task.path=/nowhere/{token}",),
        (f"model.path={token}",),
        (f"model.hub_id=me/{token}", "model.random=null"),
        (f"model.chat_template={token}",),
        (f"plugins=[{token}]",),
        (f"{token}=1",),
        (token,),
        (f"seed={token}",),
        (f"hydra.run.dir=run-{token}",),
        (f"paths.cache={token}",),
        ("-m", f"tracker.notes=a,{token}"),
        (f"+experiment={token}",),
        (f"--config-dir=/nowhere/{token}",),
        (f"lora.target_modules=[{token}]",),
        (f"objective={token}",),
        (f"harness.tasks=[{token}]",),
        (f"negatives.embedding_model=/nowhere/{token}", "negatives=hard_context"),
    ]
    by_variable: Sequence[tuple[str, ...]] = [
        (f"tracker.notes=${{oc.env:{variable}}}",),
        ("tracker=wandb", "tracker.mode=offline"),
        (f"judge.api_key_env={variable}", f"judge.base_url=http://{NOWHERE}/v1"),
        (f"judge.base_url=http://${{oc.env:{variable}}}@{NOWHERE}/v1",),
        (f"task.path=${{oc.env:{variable}}}",),
        (f"tracker.notes={secret}",),
    ]
    where = random.choice(["name", "looks", "variable", "file"])
    if where == "variable":
        variables = {variable: secret}
        words = random.choice(by_variable)
    elif where == "file":
        words = _written(one.folder, random, name, secret, token)
    else:
        words = random.choice(by_name if where == "name" else by_looks)
    judge = JUDGE if any("judge" in word for word in words) else ()
    whole = random.random() < 0.3
    command = [word for word in words if word == "-m"] + ["+debug=quick", "method=base", *judge]
    command += [word for word in words if word != "-m"] + ([] if whole else ["plan=true"])
    case = " ".join(words).replace(token, "TOKEN").replace(secret, "SECRET")
    done = run(*command, cwd=one.folder, more=variables)
    places = [str(path) for path in one.folder.rglob("*") if secret in path.name]
    for path in one.folder.rglob("*"):
        if path.is_file() and "own" not in path.relative_to(one.folder).parts and secret.encode() in path.read_bytes():
            places.append(str(path.relative_to(one.folder)))
    places += [of for of, text in (("stdout", done.stdout), ("stderr", done.stderr)) if secret in text]
    if "Traceback" in done.stderr:
        places.append(f"a traceback: {done.stderr[-300:]}")
    return Held(f"{case} ({where}{', ' + variable if variables else ''})", "; ".join(places) or None)


def _written(folder: Path, random: Random, name: str, secret: str, token: str) -> tuple[str, ...]:
    """A YAML of the user's own with a secret in it."""
    text = random.choice(
        [
            f"judge:\n  extra:\n    {name}: {secret}\n",
            f"tracker:\n  notes: mine is {token}\n",
            f"tracker:\n  notes: mine is {token}\n  tags: [\n",  # which cannot be read
            f"trainer:\n  extra:\n    {name}: {secret}\n",
            f"{token}: 1\n",
            f"seed: {token}\n",
            f"tracker:\n  notes: mine # {token}\n",
            f"task:\n  instruction: |\n    {name}: {secret}\n",
        ]
    )
    (folder / "own" / "experiment").mkdir(parents=True)
    (folder / "own" / "experiment" / "mine.yaml").write_text(f"# @package _global_\n{text}")
    return (f"--config-dir={folder / 'own'}", "+experiment=mine")


PARTS = [Part("secrets", "secrets planted wherever a user may put one: how often none was in any output", 60, attempt)]
