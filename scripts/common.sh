# Shared by the scripts in this folder, which source it. Not meant to be run.

# Everything runs from the root of the checkout, wherever it was called from.
root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
cd -- "$root"

# rustup's default place is often missing from the PATH of a non-login shell
if ! command -v cargo >/dev/null 2>&1 && [ -x "$HOME/.cargo/bin/cargo" ]; then
  PATH="$HOME/.cargo/bin:$PATH"
fi

say() { printf '%s: %s\n' "${0##*/}" "$*"; }
die() {
  printf '%s: error: %s\n' "${0##*/}" "$*" >&2
  exit 1
}

# Where cargo puts what it builds, with CARGO_TARGET_DIR and cargo's configuration honoured.
target_directory() {
  cargo metadata --format-version 1 --no-deps --offline |
    .venv/bin/python -c 'import json, sys; print(json.load(sys.stdin)["target_directory"])'
}

# Stages: each is announced, timed, and listed in the table that `stage_table` prints. The first one that fails ends the
# script (with its own exit code), table included.
stage_names=() stage_times=() stage_results=()
stage() {
  local name=$1 started=$SECONDS code=0
  shift
  printf '\n==> %s\n' "$name"
  "$@" || code=$?
  stage_names+=("$name") stage_times+=($((SECONDS - started)))
  if [ "$code" -eq 0 ]; then
    stage_results+=("ok")
    return 0
  fi
  stage_results+=("FAILED")
  stage_table
  printf 'FAILED: %s (exit code %d)\n' "$name" "$code"
  exit "$code"
}
stage_table() {
  local i
  printf '\n%-36s %8s  %s\n' "stage" "seconds" "result"
  for i in "${!stage_names[@]}"; do
    printf '%-36s %8d  %s\n' "${stage_names[i]}" "${stage_times[i]}" "${stage_results[i]}"
  done
  printf '%-36s %8d\n' "total" "$SECONDS"
}
