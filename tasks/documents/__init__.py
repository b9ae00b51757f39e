"""From files as people have them to text: PDF, HTML, EPUB, office files, mail, dumps, and archives of all of these.

`read.read` makes documents of an open file; `reader.Reader` does so in a process of its own, within limits.
Everything comes from the bytes: the same file gives the same documents everywhere. What cannot be read comes back as a
`Lost` with its reason and its place.
"""
