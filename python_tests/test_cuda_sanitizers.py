"""The CUDA schedules by host threads under ThreadSanitizer and AddressSanitizer: _cuda_host_sanitized.cpp."""

from __future__ import annotations

import subprocess

import cuda_host
import pytest

PROBE = "#include <thread>\nint main() { std::thread([] {}).join(); }\n"


def build_and_run(directory, source, *flags):
    program = cuda_host.build(directory, source, "-g", "-fno-sanitize-recover=all", *flags)
    environment = {"TSAN_OPTIONS": "halt_on_error=1", "ASAN_OPTIONS": "detect_leaks=1"}
    return subprocess.run([program], env=environment, capture_output=True, text=True, timeout=300)


def skip_where_missing(directory, *flags):
    """A compiler may come without the sanitizer's library, and a system may lay memory out as it cannot have it."""
    if cuda_host.compiler() is None:
        pytest.skip("there is no C++ compiler")
    probe = directory / "probe.cpp"
    probe.write_text(PROBE)
    try:
        done = build_and_run(directory, probe, *flags)
    except RuntimeError as error:
        pytest.skip(f"the compiler cannot build with {flags[0]}: {str(error).strip().splitlines()[-1]}")
    if done.returncode:
        pytest.skip(f"nothing runs with {flags[0]} here: {(done.stderr.strip().splitlines() or ['no message'])[0]}")


@pytest.mark.parametrize(
    "flags",
    [("-fsanitize=thread",), ("-fsanitize=address,alignment", "-O0")],  # compiled in half the time without -O1
    ids=["races", "bounds and alignment"],
)
def test_nothing_is_reported(tmp_path, flags):
    """Shared memory and tensors end where a sanitizer sees it; each walk reads what others wrote after a barrier."""
    skip_where_missing(tmp_path, *flags)
    done = build_and_run(tmp_path, "_cuda_host_sanitized.cpp", *flags)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-12000:]
    assert done.stdout.endswith(" calls\n")
    assert done.stderr == ""
