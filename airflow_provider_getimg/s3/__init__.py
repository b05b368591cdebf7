# SPDX-License-Identifier: Apache-2.0
"""
From a signed URL to an object in S3.

A file's bytes go: ``copier`` (one file, with repeated downloads) → ``download`` (one GET, over ``kept_connections``, checked by
``network_guard``) → ``spool`` (memory, then disk) → ``store`` (one PutObject). Before that, ``plan`` and ``keys`` decide where
they go; afterwards, ``lineage`` reports where they are.
"""
