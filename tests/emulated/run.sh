#!/bin/sh
# Runs a test binary on an emulated processor that this machine does not have: Bochs boots a kernel whose initramfs is the
# binary, its shared libraries and a busybox. Correctness only; nothing here says anything about speed.
#
#   tests/emulated/run.sh [test filter and options of the test harness ...]
#   BINARY=path tests/emulated/run.sh ...    another program than the kernels' unit tests
#
# The processor is Bochs' `corei3_cnl` (Cannon Lake): AVX512F, BW, VL, DQ, CD, IFMA and VBMI, which is what the AVX-512
# backend asks for. The later models (`corei7_icelake_u`, `tigerlake`) have VBMI2, VNNI and GFNI too, but Linux 6.1 dies
# on them of a double fault while it boots.
#
# Needs Debian's `bochs` and `binutils`. What else is missing (a kernel, isolinux, xorriso, cpio, busybox-static) is
# downloaded by `apt-get download` and unpacked below target/, not installed. Exit status: that of the program; 77 where
# nothing ran. A boot is two thousand million instructions, one to four minutes.
set -eu

here=$(cd "$(dirname "$0")/../.." && pwd)
work=$here/target/emulated
root=$work/root
mkdir -p "$work/debs" "$root"

skip() {
    echo "NOTHING WAS TESTED: $1" >&2
    exit 77
}

command -v bochs >/dev/null || skip "no bochs (apt-get install bochs)"

# The packages, unpacked once.
if ! [ -e "$work/unpacked" ]; then
    kernel=$(apt-cache depends linux-image-cloud-amd64 | sed -n 's/.*Depends: \(linux-image-[^ ]*\).*/\1/p' | head -1)
    (cd "$work/debs" && apt-get download "$kernel" isolinux syslinux-common cpio busybox-static \
        xorriso libisoburn1 libisofs6 libburn4 libjte2) || skip "packages could not be downloaded"
    for package in "$work"/debs/*.deb; do
        dpkg-deb -x "$package" "$root"
    done
    touch "$work/unpacked"
fi

# The program: by default the unit tests of the kernels as cargo names them in its messages, optimized, and with a part of
# the cases of rows (crates/kernels/src/tests/cases.rs).
if [ -z "${BINARY:-}" ]; then
    export SAFEQUANT_TEST_ONE_IN="${SAFEQUANT_TEST_ONE_IN-37}" CARGO_PROFILE_DEV_OPT_LEVEL=2
    BINARY=$(cd "$here" && cargo test -p safequant-kernels --lib --no-run 2>&1 |
        tee /dev/stderr | sed -n 's/.*Executable.*(\(.*\)).*/\1/p')
    BINARY=$here/$BINARY
fi

# The initramfs.
image=$work/image
rm -rf "$image"
mkdir -p "$image/bin" "$image/proc" "$image/dev" "$image/tmp"
cp "$root/bin/busybox" "$image/bin/busybox"
strip -o "$image/test" "$BINARY"
ldd "$BINARY" | sed -n 's/.* => \(\/[^ ]*\) .*/\1/p; s/^\s*\(\/[^ ]*\) .*/\1/p' | while read -r library; do
    mkdir -p "$image$(dirname "$library")"
    cp -L "$library" "$image$library"
done
for argument in "$@"; do
    printf '%s\n' "$argument"
done >"$image/arguments"
cat >"$image/init" <<'INIT'
#!/bin/busybox sh
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox grep -m1 -E '^flags' /proc/cpuinfo
set --
while read -r argument; do
    set -- "$@" "$argument"
done </arguments
RUST_BACKTRACE=1 /test "$@" 2>&1
echo "EXIT STATUS $?"
/bin/busybox sleep 3600
INIT
chmod +x "$image/init"
iso=$work/iso
rm -rf "$iso"
mkdir -p "$iso"
(cd "$image" && find . | "$root/bin/cpio" --quiet -o -H newc | gzip -1) >"$iso/initrd"
cp "$root"/boot/vmlinuz-* "$iso/vmlinuz"
cp "$root/usr/lib/ISOLINUX/isolinux.bin" "$root/usr/lib/syslinux/modules/bios/ldlinux.c32" "$iso"
# Cleared bits of CPUID, as Bochs 2.7 has them wrong: protection keys (515) and the size of compacted states (321 XSAVEC,
# 323 XSAVES), or the kernel does without XSAVE and so without AVX; MONITOR (131) and APERF/MPERF (124), which it lacks.
# The frequency of the time stamp counter is `ips` below, or every delay takes forty times as long.
cat >"$iso/isolinux.cfg" <<'CFG'
default linux
label linux
    kernel vmlinuz
    initrd initrd
    append console=ttyS0 quiet loglevel=3 clearcpuid=515,124,131,321,323 acpi=off nopcid nofsgsbase lsm=capability tsc_early_khz=60000 lpj=240000 mitigations=off nokaslr random.trust_cpu=on panic=-1
CFG
LD_LIBRARY_PATH=$root/usr/lib/x86_64-linux-gnu "$root/usr/bin/xorriso" -as mkisofs -quiet -o "$work/boot.iso" \
    -b isolinux.bin -c boot.cat -no-emul-boot -boot-load-size 4 -boot-info-table "$iso"

# The machine: no disk, no screen; what the program prints goes to a file by the serial port.
cat >"$work/bochsrc" <<CONFIG
megs: 1024
cpu: model=corei3_cnl, count=1, ips=60000000, reset_on_triple_fault=0
romimage: file=/usr/share/bochs/BIOS-bochs-latest
vgaromimage: file=/usr/share/bochs/VGABIOS-lgpl-latest
display_library: rfb, options="timeout=0"
ata0-master: type=cdrom, path=$work/boot.iso, status=inserted
boot: cdrom
com1: enabled=1, mode=file, dev=$work/serial
clock: sync=none
speaker: enabled=0
sound: waveoutdrv=dummy
log: $work/log
panic: action=fatal
CONFIG
rm -f "$work/serial"
echo "booting in Bochs, corei3_cnl; output in target/emulated/serial" >&2
# Debian's Bochs has a debugger, which waits for a command.
echo c >"$work/debugger"
nice -n "${NICE:-0}" bochs -q -f "$work/bochsrc" -rc "$work/debugger" >"$work/bochs.out" 2>&1 </dev/null &
machine=$!
trap 'kill "$machine" 2>/dev/null || true' EXIT INT TERM
while kill -0 "$machine" 2>/dev/null && ! grep -aqs '^EXIT STATUS' "$work/serial"; do
    sleep 1
done
tr -d '\r' <"$work/serial"
status=$(tr -d '\r' <"$work/serial" | sed -n 's/^EXIT STATUS //p')
[ -n "$status" ] || skip "the machine stopped before the program ended; see target/emulated/log"
exit "$status"
