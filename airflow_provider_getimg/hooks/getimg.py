# SPDX-License-Identifier: Apache-2.0
"""Turns an Airflow connection of type ``getimg`` into a client for the getimg.ai API."""

from __future__ import annotations

import json
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from airflow.providers.common.compat.sdk import AirflowNotFoundException, BaseHook

from airflow_provider_getimg.api.quote import quote
from airflow_provider_getimg.get_provider_info import get_provider_info
from airflow_provider_getimg.version_compat import READS_CONN_FIELDS, form_widgets

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime
    from decimal import Decimal

    from airflow.providers.common.compat.sdk import Connection

    from airflow_provider_getimg.api.client import GetimgClient
    from airflow_provider_getimg.api.errors import ConnectionConfigError
    from airflow_provider_getimg.api.settings import ClientSettings
    from airflow_provider_getimg.api.types import Balance, Costs, Model
    from airflow_provider_getimg.api.video_states import VideoStates
    from airflow_provider_getimg.hooks.state_folder import StateFolder

# The names in the connection's extra that configure the client.
_CLIENT_NAMES = ("timeout", "proxy", "allowed_networks")
#: All names that the connection's extra may hold.
EXTRA_NAMES = (*_CLIENT_NAMES, "state_folder")


class GetimgHook(BaseHook):
    """
    Turns a ``getimg`` connection into a :class:`~airflow_provider_getimg.api.client.GetimgClient`.

    Connection fields:

    - **API key** (password): required.
    - **Base URL** (host): with scheme; empty means ``https://api.getimg.ai``.
    - **Timeout** (extra ``timeout``): seconds that a generation, or the download of a file, may take, default 300.
    - **Proxy** (extra ``proxy``): URL of a proxy; empty means the environment's settings.
    - **Allowed networks** (extra ``allowed_networks``): networks outside the public internet that downloads may reach,
      such as ``10.0.0.0/8``.
    - **State folder** (extra ``state_folder``): ``s3://bucket/prefix``, where tasks record what they have paid for; empty means
      Airflow's task state store, from Airflow 3.3 on.

    Any other name in the extra is an error. One hook holds one client; close it with
    :meth:`close`, or use the hook as a context manager.

    It has methods for the API's free calls: models, prices, the balance and costs. They raise a
    :class:`~airflow_provider_getimg.api.errors.GetimgError`.

    :param getimg_conn_id: The connection. Default ``getimg_default``.
    """

    conn_name_attr = "getimg_conn_id"
    default_conn_name = "getimg_default"
    conn_type = "getimg"
    hook_name = "getimg.ai"

    if not READS_CONN_FIELDS:

        @classmethod
        def get_connection_form_widgets(cls) -> dict[str, Any]:
            """Return the connection form's custom fields."""
            return form_widgets(_form()["conn-fields"])

        @classmethod
        def get_ui_field_behaviour(cls) -> dict[str, Any]:
            """Return the fields that the connection form hides, and the labels of the rest."""
            behaviour = _form()["ui-field-behaviour"]
            return {name.replace("-", "_"): value for name, value in behaviour.items()}

    def __init__(self, getimg_conn_id: str = default_conn_name, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.getimg_conn_id = getimg_conn_id

    def __enter__(self) -> GetimgHook:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    @cached_property
    def settings(self) -> ClientSettings:
        """
        Base URL, timeout, proxy and allowed networks of the connection, without the key.

        :raises ConnectionConfigError: There is no such connection, or one of these fields, or ``state_folder``, can't be used.
        """
        # Imported here: httpx and pydantic would slow down the parsing of every DAG file.
        from airflow.sdk.log import mask_secret

        from airflow_provider_getimg.api.settings import ClientSettings

        connection = self._connection
        # Checked too: a client's responses must be recorded where the connection says.
        _ = self.state_folder
        with self._naming_the_connection():
            extra = _extra_of(connection)
            mask_secret({name: extra.get(name) for name in _CLIENT_NAMES})
            if proxy_password := _password_of(extra.get("proxy")):
                mask_secret(proxy_password)
            return ClientSettings.checked(
                base_url=_base_url(connection.host, connection.port),
                **{name: extra.get(name) for name in _CLIENT_NAMES},
            )

    @cached_property
    def state_folder(self) -> StateFolder | None:
        """
        Where tasks record what they have paid for; None for Airflow's task state store.

        :raises ConnectionConfigError: There is no such connection, or its ``state_folder`` can't be used.
        """
        from airflow_provider_getimg.hooks.state_folder import StateFolder

        connection = self._connection
        with self._naming_the_connection():
            return StateFolder.checked(_extra_of(connection).get("state_folder"))

    @cached_property
    def client(self) -> GetimgClient:
        """
        The client for this connection, built once. It connects only when used.

        :raises ConnectionConfigError: A field of the connection is missing or can't be used.
        """
        from airflow_provider_getimg.api.client import GetimgClient
        from airflow_provider_getimg.api.settings import is_loopback

        settings = self.settings
        if settings.base_url.startswith("http://") and not is_loopback(settings.base_url):
            self.log.warning(
                "Connection %r sends the API key to %s without encryption.",
                self.getimg_conn_id,
                settings.base_url,
            )
        with self._naming_the_connection():
            return GetimgClient(
                self._connection.password,
                base_url=settings.base_url,
                timeout=settings.timeout,
                proxy=settings.proxy,
            )

    @property
    def _connection(self) -> Connection:
        found = self._connection_or_error
        if isinstance(found, Exception):
            raise found
        return found

    @cached_property
    def _connection_or_error(self) -> Connection | ConnectionConfigError:
        """The connection, read once. A failure is cached, too: a task that continued without its state folder must not send."""
        from airflow_provider_getimg.api.errors import ConnectionUnavailableError

        try:
            return self.get_connection(self.getimg_conn_id)
        except AirflowNotFoundException:
            return ConnectionUnavailableError(
                f"Connection {self.getimg_conn_id!r} does not exist, or can't be read: create it with the type 'getimg', or "
                "name another one in getimg_conn_id."
            )

    @property
    def _name_in_messages(self) -> str:
        return f"Connection {self.getimg_conn_id!r}: "

    @contextmanager
    def _naming_the_connection(self) -> Iterator[None]:
        from airflow_provider_getimg.api.errors import ConnectionConfigError

        try:
            yield
        except ConnectionConfigError as error:
            raise ConnectionConfigError(f"{self._name_in_messages}{error.message}") from None

    def get_conn(self) -> GetimgClient:
        """Return the client for this connection: the same object as :attr:`client`."""
        return self.client

    def close(self) -> None:
        """Close the client, if any, and abort its requests in flight. The hook can be used again."""
        client = self.__dict__.pop("client", None)
        if client is not None:
            client.close()

    def list_models(self, type: Literal["image", "video"] | None = None) -> list[Model]:
        """
        Return the models that the key may use, with their prices. Free.

        :param type: Only ``image`` or ``video`` models. Default: both.
        """
        return self.client.list_models(type)

    def get_model(self, model: str) -> Model:
        """Return one model, with what it supports and its prices. Free."""
        return self.client.get_model(model)

    def image_price(self, model: str, resolution: str | None = None) -> Decimal | None:
        """
        Return the price in USD of one image; None if unknown, which doesn't mean free. The call is free.

        :param resolution: Default: the model's.
        """
        from airflow_provider_getimg.api.pricing import image_price

        return image_price(self.get_model(model), resolution)

    def video_price(
        self,
        model: str,
        resolution: str | None = None,
        duration: int | None = None,
        sound: bool | None = None,
    ) -> Decimal | None:
        """
        Return the price in USD of one video; None if unknown, which doesn't mean free. The call is free.

        :param resolution: Default: the model's.
        :param duration: In seconds. Default: the model's.
        :param sound: Whether the video has sound. Default: whichever costs more.
        """
        from airflow_provider_getimg.api.pricing import video_price

        return video_price(self.get_model(model), resolution, duration, sound)

    def video_states(self) -> VideoStates:
        """Return an async reader of video states, which the caller must close. It connects only when used."""
        from airflow_provider_getimg.api.video_states import VideoStates

        settings = self.settings
        with self._naming_the_connection():
            return VideoStates(self._connection.password, settings)

    def get_balance(self) -> Balance:
        """Return the account's balance, with its currency. Free."""
        return self.client.get_balance()

    def balance_of_at_least(self, minimum: Decimal | float | str) -> Decimal | None:
        """
        Return the balance in USD if it is at least ``minimum``; None if it isn't, or is unknown at the moment. Free.

        It is unknown after a 429, a 5xx, a failed connection or an unreadable response: check again later.

        :raises GetimgError: Checking again would fail again, such as for a wrong key.
        """
        from airflow_provider_getimg.api.balance import in_usd
        from airflow_provider_getimg.api.errors import TRANSIENT_ERRORS
        from airflow_provider_getimg.api.parameters import checked_amount

        amount = checked_amount("minimum", minimum)
        try:
            has = in_usd(self.client.get_balance())
        except TRANSIENT_ERRORS as error:
            self.log.warning("The balance is unknown at the moment: %s", error.message)
            return None
        self.log.info("Balance: %s USD, minimum: %s USD.", has, amount)
        return has if has >= amount else None

    def get_costs(self, start: datetime, end: datetime) -> Costs:
        """
        Return what the account spent from ``start`` to ``end``, both inclusive, with an entry for each UTC day. Free.

        :param start: With a time zone.
        :param end: With a time zone, after ``start``, at most 180 days later.
        """
        return self.client.get_costs(start, end)

    def test_connection(self) -> tuple[bool, str]:
        """List the models, a free call, and return the result for the connection form's Test button."""
        from airflow_provider_getimg.api.errors import GetimgError

        try:
            with self:
                models = self.client.list_models()
                return (
                    True,
                    f"{self.client.base_url} accepts the key, which has access to {len(models)} models.",
                )
        except GetimgError as error:
            # Airflow tests under a made-up id, which would only confuse users.
            return False, str(error).removeprefix(self._name_in_messages)


def _form() -> dict[str, Any]:
    """Return the connection form from the provider's metadata."""
    [form] = get_provider_info()["connection-types"]
    return dict(form)


def _extra_of(connection: Connection) -> dict[str, Any]:
    """
    Return a connection's extra. One that can't be read must not fall back to the defaults, which use the real API.

    :raises ConnectionConfigError: It is not a JSON object, or has an unknown name.
    """
    from airflow_provider_getimg.api.errors import ConnectionConfigError

    try:
        extra = json.loads(connection.extra or "{}")
    except (ValueError, TypeError, RecursionError):
        extra = None
    if not isinstance(extra, dict):
        raise ConnectionConfigError("The extra field must be a JSON object.")
    if unknown := sorted(extra.keys() - set(EXTRA_NAMES)):
        raise ConnectionConfigError(
            f"The extra field may only contain {', '.join(EXTRA_NAMES)}, got {quote(unknown[0])}."
        )
    return extra


def _base_url(host: str | None, port: int | None) -> str | None:
    """Return the base URL of a connection. One given as a URI stores the port separately from the host."""
    # Airflow's form and REST API may store 0 if no port was given.
    if not host or not port:
        return host
    scheme, separator, rest = host.rpartition("://")
    name, _, path = rest.rstrip("/").partition("/")
    return f"{scheme}{separator}{name}:{port}{path and '/'}{path}"


def _password_of(url: object) -> str | None:
    try:
        return urlsplit(str(url or "")).password
    except ValueError:
        return None
