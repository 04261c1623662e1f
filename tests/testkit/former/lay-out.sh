#!/bin/sh
# Lays out below ROOT what the compatible packages leave on a device that the provisioning service has
# assigned to HUB as DEVICE (wire facts 5.5, 5.6, 6.8): by openssl and coreutils, with nothing of edgekeep.
# With a fourth argument there is a module runtime as well. The configuration is the caller's.
#   lay-out.sh ROOT HUB DEVICE [edge]
set -eu
root=$1 hub=$2 device=$3 edge=${4:-}

hash() { printf %s "$1" | sha256sum | cut -d' ' -f1; }
file() { printf '%s-%s' "$(printf %s "$1" | tr -dc A-Za-z0-9)" "$(hash "$1")"; }

lib=$root/var/lib/aziot
mkdir -p "$root/etc/aziot/keyd/config.d" "$root/etc/aziot/identityd/config.d" "$root/var/secrets/aziot/keyd"
mkdir -p "$lib/keyd/keys" "$lib/certd/certs" "$lib/identityd"

for key in aziot_identityd_master_id iotedge_master_encryption_id handle-validation-key; do
    openssl rand -out "$lib/keyd/keys/$(file $key).key" 32
done
# A key of a program of the operator's own, whose id stands nowhere.
openssl rand -out "$lib/keyd/keys/$(file plant7/recipes).key" 32
: > "$lib/keyd/keys/empty-$(hash empty).key"
echo odd > "$lib/keyd/keys/notes.txt"

ca=$(file aziot-edged-ca)
openssl genpkey -quiet -algorithm RSA -pkeyopt rsa_keygen_bits:2048 -out "$lib/keyd/keys/$ca.key"
openssl req -x509 -new -key "$lib/keyd/keys/$ca.key" -subj "/CN=aziot-edge CA $device" -days 60 \
    -addext basicConstraints=critical,CA:TRUE,pathlen:0 -addext keyUsage=critical,digitalSignature,keyCertSign \
    -out "$lib/certd/certs/$ca.cer"
# Left by a renewal that was cut off.
openssl genpkey -quiet -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out "$lib/keyd/keys/$(file aziot-edged-ca-temp).key"
echo "no certificate" > "$lib/certd/certs/$(file broken).cer"

printf 'hub_name = "%s"\nlocal_gateway_hostname = "%s"\ndevice_id = "%s"\n' "$hub" "$hub" "$device" > "$lib/identityd/device_info"
echo 'hostname = "press-04"' > "$lib/identityd/prev_state"
mine=$lib/identityd/modules/$(hash "$hub")-$(hash "$device")
other=$lib/identityd/modules/$(hash "$hub")-$(hash earlier)
mkdir -p "$mine" "$other"
number=638
for module in '$edgeAgent' '$edgeHub' thermometer; do
    number=$((number + 1))
    printf '{"moduleId":"%s","deviceId":"%s","generationId":"%s","managedBy":"IotEdge"}' "$module" "$device" $number > "$mine/$(file "$module")"
done
printf '{"moduleId":"old","deviceId":"earlier","generationId":"1"}' > "$other/$(file old)"

echo '# made' > "$root/etc/aziot/keyd/config.d/00-super.toml"
printf '[[principal]]\nuid = 1001\nname = "watcher"\nidtype = ["module"]\n' > "$root/etc/aziot/identityd/config.d/10-watcher.toml"
echo '# a template' > "$root/etc/aziot/config.toml.template"
openssl rand -out "$root/var/secrets/aziot/keyd/device-id" 32
chmod -R go-rwx "$lib" "$root/var/secrets/aziot"

[ -n "$edge" ] || exit 0
mkdir -p "$lib/edged/mnt" "$lib/edged/cache" "$lib/edged/gc"
printf '{"device_id":"%s","gateway_host_name":"%s","hub_name":"%s"}' "$device" "$hub" "$hub" | openssl dgst -sha256 -binary | base64 > "$lib/edged/cache/provisioning_state"
echo "sha256:$(hash image) 1790000000" > "$lib/edged/gc/image_use"
# Sockets of a daemon that has ended.
for module in edgeAgent edgeHub thermometer; do
    python3 -c 'import socket, sys; socket.socket(socket.AF_UNIX).bind(sys.argv[1])' "$lib/edged/mnt/$module.sock"
done
