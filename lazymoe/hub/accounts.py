"""Whose token it is, and what it may do."""

from __future__ import annotations

from dataclasses import dataclass

from huggingface_hub import HfApi, get_token

from lazymoe.errors import error
from lazymoe.hub import client
from lazymoe.hub.client import LOGIN, TOKENS_PAGE, About, ask


@dataclass(frozen=True)
class Account:
    """Whose token it is.

    Attributes:
        name: of the user.
        organizations: where they may write too.
        writable: the namespaces, or single repositories, that the token may write to; with a read-only token none.
    """

    name: str
    organizations: tuple[str, ...]
    writable: tuple[str, ...]

    def check_right(self, repo: str) -> None:
        """Check that they may write to a repository.

        Args:
            repo: its Hub id.

        Raises:
            HubError: if they may not, with where they may.
        """
        namespace, slash, name = repo.partition("/")
        if not slash or not name or "/" in name:
            what = f"'{repo}' isn't a Hub id"
            raise error("hub.bad-name", "repository", what, f"Use a name such as '{self.name}/my-moe'.")
        if not self.writable:
            raise error("hub.token", "token", "it may only read", f"Make one with write access at {TOKENS_PAGE}.")
        if not {namespace, repo} & set(self.writable):
            if namespace in (self.name, *self.organizations):
                what = f"it may not write to '{namespace}'"
                raise error("hub.token", "token", what, f"Give it that right at {TOKENS_PAGE}.")
            what = f"'{namespace}' is not you ({self.name}), nor an organization where you may write"
            free = ", ".join(place if "/" in place else f"{place}/{name}" for place in self.writable)
            raise error("hub.forbidden", "repository", what, f"Use one of: {free}.")


def find_token() -> tuple[str, str] | None:
    """Find a token that is there already: given to this process, in the client's store, or Kaggle's.

    The client looks for a variable, a file and Colab's secrets.

    Returns:
        The token, and where it is from; None if there is none.
    """
    if typed := client.token():
        return typed, "step 1"
    if token := get_token():
        return token, "this machine's settings"
    try:
        from kaggle_secrets import UserSecretsClient

        return UserSecretsClient().get_secret("HF_TOKEN"), "Kaggle's secrets"
    except Exception:  # not on Kaggle, or no such secret: each has its own exception
        return None


def need_token() -> str:
    """Give the token that `find_token` finds.

    Raises:
        HubError: if there is none.
    """
    if found := find_token():
        return found[0]
    remedy = f"Make one with write access at {TOKENS_PAGE}, and {LOGIN}."
    raise error("hub.token", "token", "there is none", remedy)


def account(token: str) -> Account:
    """Ask the Hub whose token it is.

    Args:
        token: the token.

    Raises:
        HubError: if the Hub doesn't know it, can't be reached or keeps failing.
    """
    found = ask(About("token", "token"), lambda: HfApi(token=token).whoami())
    orgs = [org for org in found.get("orgs", []) if org.get("roleInOrg") != "read"]
    organizations = tuple(org["name"] for org in orgs)
    access = found.get("auth", {}).get("accessToken", {})
    writable: tuple[str, ...] = (found["name"], *organizations)
    if access.get("role") == "read":
        writable = ()
    elif access.get("role") == "fineGrained":
        scopes = access.get("fineGrained", {}).get("scoped", [])
        writable = tuple(s["entity"]["name"] for s in scopes if "repo.write" in s.get("permissions", []))
    return Account(found["name"], organizations, writable)
