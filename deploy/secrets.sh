#!/bin/sh
# Creates passwords for the stores of compose.yaml in ./secrets, once, and prints the settings that use them:
#
#   sh deploy/secrets.sh >>.env
#
# The folder is closed to other users of this machine; the files are not, because the containers have users of their own.
set -eu
cd "$(dirname "$0")/.."

if [ -e secrets/redis_password ]; then
    echo "secrets/ exists already; its passwords belong to the data of the stores" >&2
    exit 1
fi

umask 077
mkdir -p secrets
# .env is about to hold the passwords too.
touch .env
chmod 600 .env

for name in mongodb_root_password mongodb_password redis_password; do
    head -c 24 /dev/urandom | base64 | tr '+/' '-_' | tr -d '\n' >"secrets/$name"
    chmod 644 "secrets/$name"
done

echo "MONGODB_URL=mongodb://anker:$(cat secrets/mongodb_password)@mongodb:27017/?replicaSet=rs0&authSource=admin"
echo "REDIS_URL=redis://anker:$(cat secrets/redis_password)@redis:6379/0"
