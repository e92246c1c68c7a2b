#!/bin/sh
# Who may reach a stillroom cluster on Google Cloud, and what its machines may do: once a project.
#
#   PROJECT=my-project BUCKET=my-bucket SSH_FROM=203.0.113.7/32 sh infra/gcp/access.sh
#
# REGION is us-central1 unless it is set. The bucket must be there.
set -eu
: "${PROJECT:?names the project}" "${BUCKET:?names the bucket of the artifacts}"
: "${SSH_FROM:?says which addresses may open SSH, such as 203.0.113.7/32}"
REGION="${REGION:-us-central1}"
case "$SSH_FROM" in
*/0) echo "SSH_FROM: $SSH_FROM is everybody. Name your own addresses." >&2 && exit 2 ;;
esac

# A network of its own: the default one lets SSH in from anywhere.
gcloud compute networks create stillroom --project "$PROJECT" --subnet-mode custom
gcloud compute networks subnets create stillroom --project "$PROJECT" --network stillroom \
    --region "$REGION" --range 10.20.0.0/20 --enable-private-ip-google-access
gcloud compute firewall-rules create stillroom-ssh --project "$PROJECT" --network stillroom \
    --direction INGRESS --allow tcp:22 --source-ranges "$SSH_FROM"
# The dashboard, the job API, Ray's own ports and Serve: from node to node, from nowhere else.
gcloud compute firewall-rules create stillroom-nodes --project "$PROJECT" --network stillroom \
    --direction INGRESS --allow tcp,udp,icmp \
    --source-service-accounts "stillroom-head@$PROJECT.iam.gserviceaccount.com,stillroom-worker@$PROJECT.iam.gserviceaccount.com"

for account in stillroom-head stillroom-worker; do
    gcloud iam service-accounts create "$account" --project "$PROJECT"
    gcloud storage buckets add-iam-policy-binding "gs://$BUCKET" --role roles/storage.objectUser \
        --member "serviceAccount:$account@$PROJECT.iam.gserviceaccount.com"
    # pyarrow.fs asks whether the bucket is there.
    gcloud storage buckets add-iam-policy-binding "gs://$BUCKET" \
        --role roles/storage.legacyBucketReader \
        --member "serviceAccount:$account@$PROJECT.iam.gserviceaccount.com"
done
# The head makes and removes machines, whose account can only be the workers'.
gcloud projects add-iam-policy-binding "$PROJECT" --role roles/compute.instanceAdmin.v1 \
    --member "serviceAccount:stillroom-head@$PROJECT.iam.gserviceaccount.com" --condition None
gcloud iam service-accounts add-iam-policy-binding \
    "stillroom-worker@$PROJECT.iam.gserviceaccount.com" --project "$PROJECT" \
    --role roles/iam.serviceAccountUser \
    --member "serviceAccount:stillroom-head@$PROJECT.iam.gserviceaccount.com"
