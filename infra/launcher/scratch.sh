#!/bin/sh
# Puts /tmp onto the machine's own NVMe disks, if it has any: Ray's sessions, spilled objects, and
# checkpoints before they go to the bucket. Several disks become one striped disk. What is on them is
# lost with the machine. A second run changes nothing. install.sh installs lvm2.
set -eu
disks_by_id="${DISKS_BY_ID:-/dev/disk/by-id}"
scratch=/mnt/scratch

if mountpoint -q /opt/dlami/nvme; then # AWS's deep learning images mount the disks themselves
    scratch=/opt/dlami/nvme
elif ! mountpoint -q "$scratch"; then
    disks=""
    for link in "$disks_by_id"/nvme-Amazon_EC2_NVMe_Instance_Storage_* \
        "$disks_by_id"/google-local-nvme-ssd-*; do
        case "$link" in *'*' | *-part*) continue ;; esac
        disk=$(readlink -f "$link") # the same disk may have several names
        case " $disks " in *" $disk "*) ;; *) disks="$disks $disk" ;; esac
    done
    test -n "$disks" || exit 0
    set -- $disks
    device="$1"
    if test $# -gt 1; then
        sudo vgcreate -y scratch "$@"
        sudo lvcreate -y -n scratch -l 100%FREE -i $# scratch
        device=/dev/scratch/scratch
    fi
    sudo mkfs.ext4 -q -F -E nodiscard -m 0 "$device"
    sudo mkdir -p "$scratch"
    sudo mount -o noatime "$device" "$scratch"
fi
mountpoint -q /tmp && exit 0
sudo mkdir -p "$scratch/tmp"
sudo chmod 1777 "$scratch/tmp"
sudo mount --bind "$scratch/tmp" /tmp
