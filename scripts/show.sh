# Sourced by the launch scripts. run COMMAND...: runs it, or with PRINT=1 prints it as one would type it. joined WORDS...: one shell text.
joined() {
  local word text=""
  for word in "$@"; do
    [[ "$word" =~ ^[A-Za-z0-9_./:=,@%+-]+$ ]] || word="'${word//\'/\'\\\'\'}'"
    text+="${text:+ }$word"
  done
  printf '%s' "$text"
}
run() { if [ -n "${PRINT:-}" ]; then joined "$@"; echo; else "$@"; fi; }
