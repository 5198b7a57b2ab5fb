# For machines that reach no registry: Debian's PostgreSQL and Redis and Kafka from its jars, behaving
# where compose.yaml touches them like the images that it names.  For test.sh only.
ARG BASE
FROM ${BASE} AS debian
ENV DEBIAN_FRONTEND=noninteractive
RUN apt-get -qq update && apt-get -qq install --no-install-recommends -y \
        postgresql redis-server openjdk-17-jre-headless > /dev/null


FROM debian AS postgres
RUN install -d -o postgres -g postgres -m 1777 /var/lib/postgresql/data && \
    install -d -o postgres -g postgres -m 3777 /var/run/postgresql
COPY postgres.sh /usr/local/bin/docker-entrypoint.sh
ENV PGDATA=/var/lib/postgresql/data PATH=/usr/lib/postgresql/15/bin:$PATH
VOLUME /var/lib/postgresql/data
ENTRYPOINT ["docker-entrypoint.sh"]
CMD ["postgres"]


FROM debian AS redis
RUN install -d -o redis -g redis /data
WORKDIR /data
VOLUME /data
CMD ["redis-server"]


FROM debian AS kafka
RUN useradd --uid 1000 --create-home appuser && \
    install -d -o appuser -g appuser /var/lib/kafka/data /opt/kafka/bin
COPY lib /opt/kafka/libs
COPY kafka.sh /opt/kafka/bin/kafka-server-start.sh
COPY kafka.sh /opt/kafka/bin/kafka-storage.sh
VOLUME /var/lib/kafka/data
USER appuser
