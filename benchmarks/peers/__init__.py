"""One application for each contender, set up as its own documentation says, for automatic commits.

Each module has ``make(url, pool)``, which returns an ASGI application with these routes, and names
in ``LIBRARIES`` the distributions whose versions are printed:

======  ========  ==================================================
method  path      what it does
======  ========  ==================================================
GET     /unused   answers 200
GET     /read     SELECT by primary key, 200
POST    /write    INSERT, 201
POST    /refused  INSERT whose COMMIT fails, 201 if nobody notices
POST    /undone   INSERT, 422
POST    /moved    INSERT, 303
GET     /slow     SELECT, then a body of a megabyte in pieces
======  ========  ==================================================
"""
