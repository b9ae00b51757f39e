#!/usr/bin/env bash
# Eight minutes on a GPU, as one command; everything it finds lies in the directory given (default: gpu-session).
#
#     bash benchmarks/gpu_session.sh DIRECTORY
#     DEVICE=cpu bash benchmarks/gpu_session.sh DIRECTORY      # a rehearsal in three minutes, with tiny shapes
#     PEERS=1 bash benchmarks/gpu_session.sh DIRECTORY         # and five minutes more, for 5.
#
# 1. versions                                                    to 0:10
# 2. masking and resume, side by side (gpu_checks.py)             to 2:45
# 3. GPT-2 124M at 1,024 tokens: 40M tokens, killed once          to 6:00
# 4. SmolLM2-135M at 2,048 tokens, and a step by kernel           to 8:00
# 5. SmolLM2-135M beside HF Trainer, and with its products apart: what q, k, v and gate, up as one product each gain
# On a GPU everything is as a run has it by rule: compiled, with these products as one (training.execution.fuse_products).
# Each part has a limit of its own, so one that hangs leaves time for the next. Needs neither git nor a network.
set -uo pipefail
cd "$(dirname "$0")/.."
out=${1:-gpu-session}
device=${DEVICE:-cuda}
python=${PYTHON:-python3}
[ -x .venv/bin/python ] && [ -z "${PYTHON:-}" ] && python=.venv/bin/python
mkdir -p "$out"
failed=0

part() {  # part NAME SECONDS ARGUMENTS...: one call of gpu_checks.py with its own limit, log and exit code
  local name=$1 limit=$2 code
  shift 2
  timeout --kill-after 10 "$limit" "$python" benchmarks/gpu_checks.py --device "$device" --out "$out/$name" "$@" \
    >"$out/$name.log" 2>&1
  code=$?
  echo "$name: exit code $code after ${SECONDS} s in all"
  grep -h -E '^(masking|resume|run|profile): ' "$out/$name.log" || tail -n 5 "$out/$name.log"
  return $code
}

{
  date -u +%FT%TZ
  "$python" -c 'import platform, torch, transformers; print(platform.python_version(), torch.__version__, transformers.__version__)'
  nvidia-smi 2>/dev/null || echo "nvidia-smi is not here"
} >"$out/versions.txt" 2>&1

if [ "$device" = cpu ]; then
  first=(--shape tiny --length 64 --batch-tokens 512 --seconds 20)
  second=(--shape tiny --length 128 --batch-tokens 1024 --seconds 20)
else
  first=(--shape gpt2-124m --length 1024 --tokens 40000000 --seconds 170)
  second=(--shape smollm2-135m --length 2048 --tokens 40000000 --seconds 80)
fi
part masking 155 --only masking & masking=$!
part resume 155 --only resume & resume=$!
wait $masking || failed=1
wait $resume || failed=1
part gpt2 195 --only run "${first[@]}" || failed=1
part smollm2 120 --only run profile "${second[@]}" || failed=1
if [ -n "${PEERS:-}" ]; then
  if [ "$device" = cpu ]; then row=(--shapes tiny --lengths 64 --busy 0 --batch-tokens 256 --rounds 1); else row=(--shapes smollm2-135m --lengths 2048); fi
  timeout --kill-after 10 330 "$python" benchmarks/training.py --device "$device" "${row[@]}" \
    --peers onward onward_apart hf_trainer raw >"$out/peers.md" 2>"$out/peers.log" || failed=1
  grep '^|' "$out/peers.md" || tail -n 5 "$out/peers.log"
fi
exit $failed
