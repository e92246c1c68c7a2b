#!/bin/sh
# Installs on a bare Ubuntu what infra/docker installs in the image: the same Python, and the locked
# packages in ~/stillroom/requirements. On an image of yours that has ~/venv, only what that lacks.
set -eu
pci_devices="${PCI_DEVICES:-/sys/bus/pci/devices}"

# Whether a PCI device has this in its file `vendor` or `device`: has_device FILE PATTERN
has_device() {
    cat "$pci_devices"/*/"$1" 2>/dev/null | grep -q "$2"
}

# Tries again for up to five minutes: a machine that has just started is still busy with its updates
# and its drivers.
retry() {
    attempt=0
    until "$@"; do
        attempt=$((attempt + 1))
        test "$attempt" -lt "${ATTEMPTS:-60}" || return 1
        sleep "${RETRY_AFTER_S:-5}"
    done
}

stop() {
    echo "$1" >&2
    exit 1
}

# Without its driver a GPU would get torch's CPU build; without the plugin, NCCL would use TCP.
set -- --index-url https://download.pytorch.org/whl/cpu -r torch-cpu.txt
if has_device vendor 0x10de; then
    retry nvidia-smi -L >/dev/null ||
        stop "The image has no NVIDIA driver for this GPU. Use another one for YOUR_IMAGE."
    set -- -r torch.txt
fi
if has_device device 0xefa; then
    ldconfig -p | grep -q libnccl-net ||
        stop "The image has no aws-ofi-nccl for EFA. Use a deep learning image of AWS for YOUR_IMAGE."
fi

# DPkg::Lock::Timeout does not hold for the lock of `apt-get update`.
if ! { command -v g++ && command -v pvcreate && python3 -m ensurepip --version; } >/dev/null 2>&1; then
    retry sudo apt-get update -qq
    sudo DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 install -qq g++ lvm2 python3-venv
fi

cd ~/stillroom/requirements
test -x ~/uv/bin/uv || python3 -m venv ~/uv
~/uv/bin/pip install --quiet --require-hashes --no-deps -r uv.txt
test -x ~/venv/bin/python || ~/uv/bin/uv venv --quiet --python 3.11.18 ~/venv
install() {
    ~/uv/bin/uv pip install --quiet --python ~/venv --require-hashes --no-deps "$@"
}
install "$@" # torch: first and alone, as in the Makefile
install -r requirements.txt
