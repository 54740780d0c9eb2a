#!/bin/bash
# build.sh FOLDER: prepares the real-kernel rig in FOLDER from the distribution's packages and this folder.
#
# Steps that are done are not done again: remove a file of FOLDER to have it made anew.
#   Image     L0's kernel: source package of the distribution, l0/kernel.config, one change (below)   17 min on 2 cores
#   qemu      a program that starts QEMU 10.0 or newer: the machine's, else one in a private root      3 min
#   busybox   static, for arm64
#   vmm       the VMM with its L1, cross-compiled here
#   init, trace.sh, counts.sh
#
# Environment: SOURCE (linux-source-7.3), SUITE of the private root (trixie), KERNEL_SOURCE (an unpacked tree or a tar
# file to be used instead of the package), JOBS, CROSS (aarch64-linux-gnu-).
# Exit codes: 3 when the machine cannot do it (what is missing is listed), 4 for a wrong call.
set -euo pipefail

here=$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")
[ $# -eq 1 ] || { echo "usage: build.sh FOLDER" >&2; exit 4; }
mkdir -p "$1" || exit 4
rig=$(readlink -f "$1")
SOURCE=${SOURCE:-linux-source-7.3}
SUITE=${SUITE:-trixie}
JOBS=${JOBS:-$(nproc)}
CROSS=${CROSS:-aarch64-linux-gnu-}
scratch=$rig/build
packages=$rig/root/tmp
OLDEST_QEMU=10

say() { echo "== $*"; }
has() { command -v "$1" > /dev/null; }

# --- what is missing, before anything is begun

missing=()
want() {   # want PROGRAM PACKAGE WHAT-FOR
	has "$1" || missing+=("$1 (package $2): $3")
}

system_qemu() {   # the machine's QEMU, if it is new enough
	has qemu-system-aarch64 || return 1
	local major
	major=$(qemu-system-aarch64 --version | sed -n '1s/.*version \([0-9]*\)\..*/\1/p')
	[ "${major:-0}" -ge "$OLDEST_QEMU" ]
}

private_root_wanted() {   # QEMU, busybox or the kernel's source can come from nowhere else
	{ [ ! -e "$rig/qemu" ] && ! system_qemu; } || [ ! -e "$rig/busybox" ] ||
		{ [ ! -e "$rig/Image" ] && [ -z "${KERNEL_SOURCE:-}" ]; }
}

look() {
	want make make "building"
	want "${CROSS}gcc" gcc-aarch64-linux-gnu "the VMM and L1"
	echo 'int main(void) { return 0; }' > "$rig/.probe.c"
	if has "${CROSS}gcc" && ! "${CROSS}gcc" -static -o "$rig/.probe" "$rig/.probe.c" 2> /dev/null; then
		missing+=("static libc for arm64 (package libc6-dev-arm64-cross): the VMM")
	fi
	rm -f "$rig/.probe" "$rig/.probe.c"
	if [ ! -e "$rig/Image" ]; then
		for program in flex bison bc pahole xz; do
			want "$program" "$program" "the kernel"
		done
	fi
	if private_root_wanted; then
		want debootstrap debootstrap "a private root for packages of $SUITE"
		want dpkg dpkg "unpacking packages"
		want apt-get apt "where packages come from"
		[ "$(id -u)" = 0 ] || missing+=("root: debootstrap makes the private root")
	fi
	[ ${#missing[@]} -eq 0 ] && return
	echo "the rig cannot be prepared here; missing:" >&2
	printf '  %s\n' "${missing[@]}" >&2
	exit 3
}

# --- the steps

private_root() {
	[ -e "$rig/root/.complete" ] && return
	say "private root with packages of $SUITE"
	mkdir -p "$scratch"
	[ -e "$rig/root/bin" ] || debootstrap --variant=minbase "$SUITE" "$rig/root" > "$scratch/debootstrap.log"
	local mirror
	mirror=$(apt-get indextargets --format '$(REPO_URI)' | grep -m1 '/debian/*$')
	echo "deb $mirror $SUITE-backports main" > "$rig/root/etc/apt/sources.list.d/backports.list"
	chroot "$rig/root" sh -ec "dpkg --add-architecture arm64; apt-get update; export DEBIAN_FRONTEND=noninteractive
		apt-get install -y --no-install-recommends -t $SUITE-backports qemu-system-arm
		cd /tmp; apt-get download -t $SUITE-backports $SOURCE; apt-get download busybox-static:arm64" \
		> "$scratch/root.log" 2>&1
	touch "$rig/root/.complete"
}

qemu() {
	[ -e "$rig/qemu" ] && return
	say "qemu"
	if system_qemu; then
		printf '#!/bin/sh\nexec qemu-system-aarch64 "$@"\n' > "$rig/qemu"
	else
		private_root
		cat > "$rig/qemu" <<- 'END'
			#!/bin/sh
			root=$(dirname "$(readlink -f "$0")")/root
			exec "$root/lib64/ld-linux-x86-64.so.2" --library-path "$root/usr/lib/x86_64-linux-gnu" \
				"$root/usr/bin/qemu-system-aarch64" -L "$root/usr/share/qemu" "$@"
		END
	fi
	chmod +x "$rig/qemu"
}

busybox() {
	[ -e "$rig/busybox" ] && return
	say "busybox"
	private_root
	dpkg -x "$packages"/busybox-static_*.deb "$scratch/busybox"
	cp "$scratch/busybox/usr/bin/busybox" "$rig/busybox"
}

kernel_source() {
	[ -e "$scratch/linux/Makefile" ] && return
	mkdir -p "$scratch/linux"
	if [ -d "${KERNEL_SOURCE:-}" ]; then
		cp -a "$KERNEL_SOURCE/." "$scratch/linux"
	else
		local archive=${KERNEL_SOURCE:-}
		if [ -z "$archive" ]; then
			private_root
			dpkg -x "$packages/$SOURCE"_*.deb "$scratch/source"
			archive=$(echo "$scratch"/source/usr/src/*.tar.*)
		fi
		tar xf "$archive" -C "$scratch/linux" --strip-components=1
	fi
	# A test aid: id_aa64mmfr0.parange=N on the command line lowers the IPA limit, as on smaller cores.
	sed -i '/ID_AA64MMFR0_EL1_ECV_SHIFT/a FIELD("parange", ID_AA64MMFR0_EL1_PARANGE_SHIFT, NULL),' \
		"$scratch/linux/arch/arm64/kernel/pi/idreg-override.c"
}

kernel() {
	[ -e "$rig/Image" ] && return
	say "kernel source"
	kernel_source
	say "kernel"
	local build=("make" -s -C "$scratch/linux" "O=$scratch/kernel" ARCH=arm64 "CROSS_COMPILE=$CROSS")
	"${build[@]}" KCONFIG_ALLCONFIG="$here/l0/kernel.config" allnoconfig > "$scratch/config.log"
	grep -E '^CONFIG_.*=[y0-9]' "$here/l0/kernel.config" | while read -r option; do
		grep -qxF "$option" "$scratch/kernel/.config" || echo "   not set: $option"
	done
	"${build[@]}" -j"$JOBS" Image > "$scratch/kernel.log" 2>&1 ||
		{ tail -20 "$scratch/kernel.log" >&2; exit 1; }
	cp "$scratch/kernel/arch/arm64/boot/Image" "$rig/Image"
}

look
qemu
busybox
kernel
say "vmm and L1"
make -s -C "$here" OUT="$scratch/guest" CROSS="$CROSS"
cp "$scratch/guest/vmm" "$here"/l0/init "$here"/l0/trace.sh "$here"/l0/counts.sh "$rig"
say "the rig stands in $rig"
