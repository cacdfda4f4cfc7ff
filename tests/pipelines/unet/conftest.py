"""The toy releases are those of the folder above; nobody changes them."""

from __future__ import annotations

from tests.pipelines.conftest import Release

__all__ = ["Release"]
