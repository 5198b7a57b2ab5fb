#!/bin/sh
# Stands for kafka-server-start.sh and kafka-storage.sh, by the name it is called under.
set -eu
case $0 in
*/kafka-storage.sh) class=kafka.tools.StorageTool ;;
*) class=kafka.Kafka ;;
esac
# shellcheck disable=SC2086 # several options
exec java ${KAFKA_HEAP_OPTS:-} -XX:+UseSerialGC -Dorg.slf4j.simpleLogger.defaultLogLevel=warn \
    -cp '/opt/kafka/libs/*' "$class" "$@"
