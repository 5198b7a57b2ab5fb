-- Whether a node is there, as far as the store knows: true from its registration and each of its
-- heartbeats on, false once its deadline is missed.  Servers know their own nodes better.

ALTER TABLE nodes ADD COLUMN online BOOLEAN NOT NULL DEFAULT FALSE;
