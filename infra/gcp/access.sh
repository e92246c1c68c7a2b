#!/bin/sh
# Network access to a stillroom cluster on Google Cloud and the accounts of its machines. Once per
# project:
#
#   PROJECT=my-project BUCKET=my-bucket SSH_FROM=203.0.113.7/32 sh infra/gcp/access.sh
#
# REGION defaults to us-central1. The bucket must exist.
set -eu
: "${PROJECT:?names the project}" "${BUCKET:?names the bucket of the artifacts}"
: "${SSH_FROM:?names the addresses that may use SSH, such as 203.0.113.7/32}"
REGION="${REGION:-us-central1}"
case "$SSH_FROM" in
*/0) echo "SSH_FROM: $SSH_FROM allows all addresses. Name your own." >&2 && exit 2 ;;
esac

# A separate network: the default one allows SSH from anywhere.
gcloud compute networks create stillroom --project "$PROJECT" --subnet-mode custom
gcloud compute networks subnets create stillroom --project "$PROJECT" --network stillroom \
    --region "$REGION" --range 10.20.0.0/20 --enable-private-ip-google-access
gcloud compute firewall-rules create stillroom-ssh --project "$PROJECT" --network stillroom \
    --direction INGRESS --allow tcp:22 --source-ranges "$SSH_FROM"
# Dashboard, job API, Ray's own ports and Serve: only between nodes.
gcloud compute firewall-rules create stillroom-nodes --project "$PROJECT" --network stillroom \
    --direction INGRESS --allow tcp,udp,icmp \
    --source-service-accounts "stillroom-head@$PROJECT.iam.gserviceaccount.com,stillroom-worker@$PROJECT.iam.gserviceaccount.com"

for account in stillroom-head stillroom-worker; do
    gcloud iam service-accounts create "$account" --project "$PROJECT"
    gcloud storage buckets add-iam-policy-binding "gs://$BUCKET" --role roles/storage.objectUser \
        --member "serviceAccount:$account@$PROJECT.iam.gserviceaccount.com"
    # pyarrow.fs checks whether the bucket exists.
    gcloud storage buckets add-iam-policy-binding "gs://$BUCKET" \
        --role roles/storage.legacyBucketReader \
        --member "serviceAccount:$account@$PROJECT.iam.gserviceaccount.com"
done
# The head creates and deletes machines, which can only have the workers' account.
gcloud projects add-iam-policy-binding "$PROJECT" --role roles/compute.instanceAdmin.v1 \
    --member "serviceAccount:stillroom-head@$PROJECT.iam.gserviceaccount.com" --condition None
gcloud iam service-accounts add-iam-policy-binding \
    "stillroom-worker@$PROJECT.iam.gserviceaccount.com" --project "$PROJECT" \
    --role roles/iam.serviceAccountUser \
    --member "serviceAccount:stillroom-head@$PROJECT.iam.gserviceaccount.com"
