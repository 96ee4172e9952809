"""A store of published heads, in a directory or an object store.

What holds, wherever a process is killed, and whatever other processes do at the same time:

- Each object is whole. A reader finds the old content, the new content, or no object.
- A publisher first writes the head file, then the record of the version, which is one object that
  is created only if its number is free. So a publisher that dies leaves no incomplete version and
  no gap in the numbers, and no two publishers get the same number.
- After the record, the publisher checks that ``gc`` has not taken the head file, and writes it
  again if it has. Then it signs the version, then it sets the tags. So when ``publish`` returns,
  all of that is in the store. A publisher that dies before that may leave a version without its
  signature or its tags.
- Setting and removing a tag, yanking and its undoing, and ``upgrade`` each change one object. They
  have happened when they return; if they are killed, they have happened or not.
- ``gc`` loses nothing that a version names, see ``maintenance.gc``.
- ``pull`` leaves the old file or the new one at its path.

If an object store raises an error, a write may have happened all the same: the answer may be what
was lost. ``publish`` recognizes its own record then. All other writers can simply run again.
``layout`` describes the objects of a store.
"""
