#!/usr/bin/python
"""Ansible module: the files of meshd as one, checked by meshd before any of them is written."""

DOCUMENTATION = r"""
module: meshd_files
short_description: Writes meshd.toml and peers/NAME.toml, all or none
description:
  - meshd checks the folder as it would be. Only then what differs is written, and a running agent takes it.
    When the agent refuses it, the files are as they were.
  - Peers that an earlier run wrote and that are no more in O(peers) are removed. Those that others wrote stay.
  - Keys that meshd itself writes into a peer's file (such as a preshared key after C(meshd peer rotate)) stay.
  - The diff shows no preshared key.
options:
  host:
    description: The text of meshd.toml.
    type: str
    required: true
  peers:
    description: The texts of peers/NAME.toml by NAME.
    type: dict
    required: true
  preshared_keys:
    description: Preshared keys by NAME, in place of those that are there.
    type: dict
    default: {}
  dir:
    description: The folder.
    type: path
    default: /etc/meshd
"""

import fcntl
import hashlib
import os
import re
import shutil
import tempfile

from ansible.module_utils.basic import AnsibleModule

# How the peers' files of this role begin.
MARK = '# Written by Ansible'
# What meshd adds to a peer's file: `meshd peer rotate`, `meshd peer trust`.
ADDED = re.compile(r'^(preshared_key|inviter_key|next_\w+|former_public_key)\s*=.*\n', re.M)
SECRET = re.compile(r'^((?:next_)?preshared_key\s*=).*', re.M)
NOT_RUNNING = 3


class Folder:
    """The files that the role writes or may remove: relative paths, each with its text and mode."""

    def __init__(self, path):
        self.path = path

    def names(self):
        peers = os.path.join(self.path, 'peers')
        found = sorted(os.listdir(peers)) if os.path.isdir(peers) else []
        return ['meshd.toml'] + ['peers/' + name for name in found if re.match(r'[^.].*\.toml$', name)]

    def read(self, name):
        """A file's text and mode; nothing when there is none."""
        try:
            with open(os.path.join(self.path, name), encoding='utf-8', errors='surrogateescape') as file:
                return file.read(), os.fstat(file.fileno()).st_mode & 0o777
        except FileNotFoundError:
            return '', None

    def put(self, name, text, mode):
        """Writes a file whole, as its folder's owner's; without a mode there is to be none."""
        path = os.path.join(self.path, name)
        if mode is None:
            if os.path.lexists(path):
                os.unlink(path)
            return
        folder = os.path.dirname(path)
        owner = os.stat(self.path)
        if not os.path.isdir(folder):
            os.mkdir(folder, 0o700)
            os.chown(folder, owner.st_uid, owner.st_gid)
        # Hidden, so that meshd does not read it; a rename leaves no half of a file behind.
        descriptor, new = tempfile.mkstemp(prefix='.ansible-', dir=folder)
        with os.fdopen(descriptor, 'w', encoding='utf-8', errors='surrogateescape') as file:
            file.write(text)
            os.fchmod(descriptor, mode)
            os.fchown(descriptor, owner.st_uid, owner.st_gid)
            file.flush()
            os.fsync(descriptor)
        os.rename(new, path)


def peer_text(text, there, preshared_key):
    """A peer's file: what the inventory says, then the keys that meshd added to what is there."""
    keys = {'preshared_key': 'preshared_key = "%s"\n' % preshared_key} if preshared_key else {}
    for line in ADDED.finditer(there):
        keys.setdefault(line.group(1), line.group(0))
    said = {line.split('=')[0].strip() for line in text.splitlines()}
    if 'preshared_key_file' in said:
        said.add('preshared_key')
    return text + ''.join(line for key, line in keys.items() if key not in said)


def changes(folder, params):
    """What is there and what is to be, by name, of each file that differs."""
    wanted = {'meshd.toml': (params['host'], 0o644)}
    for name, text in params['peers'].items():
        path = 'peers/%s.toml' % name
        text = peer_text(text, folder.read(path)[0], params['preshared_keys'].get(name))
        wanted[path] = (text, 0o600)
    for path in folder.names():
        if path not in wanted and folder.read(path)[0].startswith(MARK):
            wanted[path] = ('', None)
    pairs = {path: (folder.read(path), new) for path, new in wanted.items()}
    return {path: pair for path, pair in pairs.items() if pair[0] != pair[1]}


def check(module, meshd, folder, changed):
    """Fails with what meshd finds wrong with the folder as it would be."""
    # In memory, as the private key is among the files: meshd checks that it is nobody else's.
    stage = tempfile.mkdtemp(prefix='meshd-', dir='/run')
    try:
        copy = Folder(os.path.join(stage, 'etc'))
        if os.path.isdir(folder.path):
            shutil.copytree(folder.path, copy.path, symlinks=True)
        os.makedirs(os.path.join(copy.path, 'peers'), exist_ok=True)
        for name, (_, new) in changed.items():
            copy.put(name, *new)
        key = os.path.join(copy.path, 'private.key')
        if not os.path.exists(key):
            copy.put('private.key', module.run_command([meshd, 'genkey'])[1], 0o600)
        code, _, said = module.run_command([meshd, '--dir', copy.path, 'peer', 'list'])
        if code != 0:
            module.fail_json(msg=said.replace(copy.path, folder.path).strip())
    finally:
        shutil.rmtree(stage)


def write(module, meshd, folder, changed):
    """Writes the files and has a running agent take them; puts all back when that fails."""
    try:
        for name, (_, new) in changed.items():
            folder.put(name, *new)
        code, _, said = module.run_command([meshd, 'reload'])
        if code in (0, NOT_RUNNING):
            return code == 0
    except OSError as error:
        said = str(error)
    for name, (old, _) in changed.items():
        folder.put(name, *old)
    module.fail_json(msg='the files are as they were: ' + said.strip())


def shown(path, old, new):
    """One file's part of the diff. Of a secret it tells only whether it is the same."""
    def hide(line):
        return '%s (secret %s)' % (line.group(1), hashlib.sha256(line.group(0).encode()).hexdigest()[:8])

    before, after = (SECRET.sub(hide, text) for text in (old[0], new[0]))
    return {'before': before, 'after': after, 'before_header': path, 'after_header': path}


def main():
    module = AnsibleModule(
        argument_spec={
            'host': {'type': 'str', 'required': True},
            'peers': {'type': 'dict', 'required': True},
            'preshared_keys': {'type': 'dict', 'default': {}, 'no_log': True},
            'dir': {'type': 'path', 'default': '/etc/meshd'},
        },
        supports_check_mode=True,
    )
    folder = Folder(module.params['dir'])
    meshd = module.get_bin_path('meshd')
    if not meshd and not module.check_mode:
        module.fail_json(msg='meshd is not installed: set meshd_deb or meshd_binary')
    if os.path.isdir(folder.path):
        # As meshd's own commands, so that neither overwrites what the other has just checked.
        lock = os.open(folder.path, os.O_RDONLY)
        fcntl.flock(lock, fcntl.LOCK_EX)

    changed = changes(folder, module.params)
    if meshd:
        check(module, meshd, folder, changed)
    else:
        module.warn('meshd is not installed yet, so nothing was checked')
    reloaded = bool(changed) and not module.check_mode and write(module, meshd, folder, changed)
    diff = [shown(os.path.join(folder.path, path), *pair) for path, pair in changed.items()]
    module.exit_json(changed=bool(changed), reloaded=reloaded, diff=diff)


if __name__ == '__main__':
    main()
