#!/bin/sh
# A stillroom cluster on Google Cloud: its bucket, network and placement policies, and the accounts of
# its machines.
#
#   PROJECT=my-project BUCKET=my-bucket SSH_FROM=203.0.113.7/32 sh infra/gcp/access.sh
#
# Needs `gcloud auth login`. Run it again after a failure, or to change SSH_FROM: what is there stays.
# REGION defaults to us-central1, the region of infra/gcp/cluster.yaml.
set -eu
: "${PROJECT:?names the project}" "${BUCKET:?names the bucket of the artifacts}"
: "${SSH_FROM:?names the addresses that may use SSH, such as 203.0.113.7/32}"
REGION="${REGION:-us-central1}"
case "$SSH_FROM" in
*/0) echo "SSH_FROM: $SSH_FROM allows all addresses. Name your own." >&2 && exit 2 ;;
esac
head="stillroom-head@$PROJECT.iam.gserviceaccount.com"
worker="stillroom-worker@$PROJECT.iam.gserviceaccount.com"

# Creates what a describe command does not find: there DESCRIBE… -- CREATE…
there() {
    describe=""
    while [ "$1" != -- ]; do
        describe="$describe $1"
        shift
    done
    shift
    # No argument of the describe commands holds a space.
    gcloud $describe --project "$PROJECT" >/dev/null 2>&1 || gcloud "$@" --project "$PROJECT"
}

# Repeats a command until it succeeds: IAM and a service that was just enabled need up to minutes.
until_known() {
    attempt=0
    until "$@"; do
        attempt=$((attempt + 1))
        test "$attempt" -lt "${ATTEMPTS:-30}" || return 1
        echo "waits for Google Cloud, and tries again" >&2
        sleep "${RETRY_AFTER_S:-10}"
    done
}

gcloud services enable compute.googleapis.com iam.googleapis.com storage.googleapis.com \
    cloudresourcemanager.googleapis.com --project "$PROJECT"

until_known there storage buckets describe "gs://$BUCKET" -- \
    storage buckets create "gs://$BUCKET" --location "$REGION" \
    --uniform-bucket-level-access --public-access-prevention

until_known there iam service-accounts describe "$head" -- iam service-accounts create stillroom-head
until_known there iam service-accounts describe "$worker" -- \
    iam service-accounts create stillroom-worker

# A separate network: the default one allows SSH from anywhere.
until_known there compute networks describe stillroom -- \
    compute networks create stillroom --subnet-mode custom --mtu 8896
there compute networks subnets describe stillroom --region "$REGION" -- \
    compute networks subnets create stillroom --network stillroom \
    --region "$REGION" --range 10.20.0.0/20 --enable-private-ip-google-access
there compute firewall-rules describe stillroom-ssh -- \
    compute firewall-rules create stillroom-ssh --network stillroom \
    --direction INGRESS --allow tcp:22 --source-ranges "$SSH_FROM"
gcloud compute firewall-rules update stillroom-ssh --source-ranges "$SSH_FROM" --project "$PROJECT"
# Dashboard, job API, Ray's own ports and Serve: only between nodes.
until_known there compute firewall-rules describe stillroom-nodes -- \
    compute firewall-rules create stillroom-nodes --network stillroom \
    --direction INGRESS --allow tcp,udp,icmp --source-service-accounts "$head,$worker"

# Machines of one type that train together stand close to one another.
for gpu in h100 a100; do
    there compute resource-policies describe "stillroom-$gpu" --region "$REGION" -- \
        compute resource-policies create group-placement "stillroom-$gpu" --region "$REGION" \
        --collocation collocated
done

for account in "$head" "$worker"; do
    # legacyBucketReader: pyarrow.fs checks whether the bucket exists.
    for role in roles/storage.objectUser roles/storage.legacyBucketReader; do
        until_known gcloud storage buckets add-iam-policy-binding "gs://$BUCKET" \
            --role "$role" --member "serviceAccount:$account"
    done
done
# The head creates and deletes machines, which can only have the workers' account.
until_known gcloud projects add-iam-policy-binding "$PROJECT" \
    --role roles/compute.instanceAdmin.v1 --member "serviceAccount:$head" --condition None
until_known gcloud iam service-accounts add-iam-policy-binding "$worker" --project "$PROJECT" \
    --role roles/iam.serviceAccountUser --member "serviceAccount:$head"
