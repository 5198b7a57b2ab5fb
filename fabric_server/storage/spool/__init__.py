"""A bus on disk: records outlive the process, and wait while the store or Kafka is away.

From the bytes up: ``frames``, ``segments`` and ``cursor`` are the files; ``segment_writer``,
``segment_reader`` and ``read_buffer`` the two ends of one topic; ``disk_log`` the topic;
``spool`` the bus of two topics; ``orphans`` moves on what ended servers left behind.
"""
