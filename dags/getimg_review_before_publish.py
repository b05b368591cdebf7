# SPDX-License-Identifier: Apache-2.0
"""
Images that a person reviews and approves before they are published.

It shows ``images_markdown`` in the body of Airflow's ``ApprovalOperator``: the images are saved under ``review/`` and shown on the
Required Actions page. The approver may leave some out. Only the chosen ones are copied to ``published/``, an asset that schedules the
DAG ``getimg_site``. The others stay under ``review/``, with the tag ``review=rejected``; so do all of them if the answer is Reject.

It needs:

- the connections ``getimg_default`` and ``aws_default``,
- the Airflow Variable ``getimg_bucket``: the name of an S3 bucket,
- the pool ``getimg``, with one slot per concurrent request that the account allows,
- on the API server, this provider and the connection ``aws_default``, to show the images,
- an Airflow newer than 3.1.2, which makes ``leave_out`` a required text. There, remove the param: all images are approved or none.

A run is billed for its images before the review, whatever the answer is. Safe to run twice: the keys contain the generation's id. To be
asked again, clear the task ``review`` and everything downstream: nothing is billed, and a copy that is left out this time is deleted
from ``published/``.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from airflow.providers.common.compat.sdk import AirflowSkipException
from airflow.providers.standard.operators.hitl import ApprovalOperator
from airflow.sdk import DAG, Asset, Param, task

from airflow_provider_getimg.operators.image import GenerateImageOperator
from airflow_provider_getimg.review import SavedImage, images_markdown, saved_images
from airflow_provider_getimg.transfers.getimg_to_s3 import TransferToS3Operator

PUBLISHED = Asset("getimg_published")
MAX_IMAGES = 12


def by_answer(ti: Any) -> tuple[list[SavedImage], list[SavedImage]]:
    """Return the approved images, and the rejected ones."""
    images = saved_images(ti, "save_to_s3")
    answer = ti.xcom_pull(task_ids="review")
    # After a Reject there is no XCom. Nor is there one if someone marks the task as success: that is not an approval.
    if answer is None or answer["chosen_options"] != [ApprovalOperator.APPROVE]:
        return [], images
    left_out = {int(number) for number in answer["params_input"].get("leave_out") or ()}
    if unknown := left_out - {image.number for image in images}:
        # Better to ask again than to publish what someone wanted to leave out.
        raise ValueError(
            f"There are {len(images)} images, and no number {min(unknown)}: clear the task review."
        )
    return (
        [image for image in images if image.number not in left_out],
        [image for image in images if image.number in left_out],
    )


def s3(image: SavedImage) -> Any:
    """Return the hook of the connection that saved the image."""
    # Imported here, so that parsing this file stays fast.
    from airflow.providers.amazon.aws.hooks.s3 import S3Hook

    return S3Hook(image.aws_conn_id)


def mark(image: SavedImage, review: str) -> None:
    """Tag the object under ``review/``."""
    tags = {"TagSet": [{"Key": "review", "Value": review}]}
    s3(image).get_conn().put_object_tagging(Bucket=image.bucket, Key=image.key, Tagging=tags)


def published_key(image: SavedImage) -> str:
    """Return the key of the image's copy."""
    return f"published/{image.key.removeprefix('review/')}"


with DAG(
    dag_id="getimg_review_before_publish",
    schedule=None,
    start_date=datetime(2026, 1, 1),
    tags=["getimg", "example"],
    doc_md=__doc__,
    params={
        "subjects": Param(
            ["a lighthouse", "a red fox", "a night train"],
            type="array",
            items={"type": "string"},
            minItems=1,
            maxItems=MAX_IMAGES,
        )
    },
    user_defined_macros={"images_markdown": images_markdown},
):

    @task
    def write_prompts(params: Any = None) -> list[str]:
        """Return a prompt per subject; a real DAG would read them from a table."""
        return [f"{subject}, as a poster for a travel agency" for subject in params["subjects"]]

    generate_images = GenerateImageOperator.partial(
        task_id="generate_images",
        model="seedream-5-lite",
        aspect_ratio="1:1",
        output_format="webp",
        pool="getimg",
    ).expand(prompt=write_prompts())

    save_to_s3 = TransferToS3Operator(
        task_id="save_to_s3",
        generation=generate_images.output,
        s3_bucket="{{ var.value.getimg_bucket }}",
        s3_key="review/{generation_id}-{index}.{extension}",
    )

    review = ApprovalOperator(
        task_id="review",
        subject="Publish these images?",
        body="{{ images_markdown(ti, 'save_to_s3') }}",
        params={
            "leave_out": Param(
                None,
                # The form sends null if nothing is chosen.
                type=["array", "null"],
                # Examples make the field a list to choose from.
                examples=[str(number + 1) for number in range(MAX_IMAGES)],
                title="Leave out",
                description="The numbers of images that are not to be published.",
            )
        },
    )

    @task(outlets=[PUBLISHED])
    def publish(ti: Any = None, outlet_events: Any = None) -> list[str]:
        """Copy the approved images, and return the URIs of the copies."""
        approved, _ = by_answer(ti)
        if not approved:
            raise AirflowSkipException("No image was approved.")
        for image in approved:
            mark(image, "approved")
            # Metadata and tags are copied, too. Buckets no longer accept ACLs, unless they are configured to.
            s3(image).copy_object(
                image.key, published_key(image), image.bucket, image.bucket, acl_policy="no-acl"
            )
        uris = [f"s3://{image.bucket}/{published_key(image)}" for image in approved]
        outlet_events[PUBLISHED].extra = {"uris": uris}
        return uris

    # Reject skips every task directly downstream of the review, whatever its trigger rule, so this one runs after publish.
    @task(trigger_rule="none_failed")
    def mark_rejected(ti: Any = None) -> list[str]:
        """Tag the rejected images, delete their copies from an earlier approval, and return the URIs."""
        _, rejected = by_answer(ti)
        for image in rejected:
            mark(image, "rejected")
            s3(image).delete_objects(image.bucket, published_key(image))
        return [image.uri for image in rejected]

    save_to_s3 >> review >> publish() >> mark_rejected()


with DAG(
    dag_id="getimg_site",
    schedule=[PUBLISHED],
    start_date=datetime(2026, 1, 1),
    catchup=False,
    tags=["getimg", "example"],
    doc_md="Runs whenever `getimg_review_before_publish` has published images, and returns their URIs.",
):

    @task
    def update_site(triggering_asset_events: Any = None) -> list[str]:
        """Return the URIs of the new images; a real DAG would build the site."""
        return [uri for event in triggering_asset_events[PUBLISHED] for uri in event.extra["uris"]]

    update_site()
