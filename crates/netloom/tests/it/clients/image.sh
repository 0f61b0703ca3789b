# Makes /run/image.tar: an image of busybox that sleeps, in the form of `docker save`.
set -e
dir=/run/image
mkdir -p $dir/root/bin $dir/root/etc $dir/root/tmp $dir/tar
cp "$(command -v busybox)" $dir/root/bin/busybox
for applet in sh sleep ping ip; do ln -s busybox $dir/root/bin/$applet; done
echo root:x:0:0:root:/:/bin/sh >$dir/root/etc/passwd
tar -C $dir/root -cf $dir/tar/layer.tar .
sum=$(sha256sum $dir/tar/layer.tar | cut -d' ' -f1)
machine=$(uname -m | sed 's/x86_64/amd64/; s/aarch64/arm64/')
printf '{"architecture":"%s","os":"linux","config":{"Cmd":["/bin/sleep","1000"],"Env":["PATH=/bin"]},"rootfs":{"type":"layers","diff_ids":["sha256:%s"]},"history":[{"created_by":"test"}]}' "$machine" "$sum" >$dir/tar/config.json
printf '[{"Config":"config.json","RepoTags":["docker.io/library/lab:latest"],"Layers":["layer.tar"]}]' >$dir/tar/manifest.json
tar -C $dir/tar -cf /run/image.tar .
