/* A small Lua interpreter: runs the script named first, with the words after it in `arg`.
   (The crate that brings Lua's sources leaves out the interpreter's own main.) */
#include <stdio.h>

#include "lauxlib.h"
#include "lua.h"
#include "lualib.h"

static void set_arguments(lua_State *lua, int count, char **words)
{
    lua_createtable(lua, count, 0);
    for (int i = 0; i < count; i++) {
        lua_pushstring(lua, words[i]);
        lua_rawseti(lua, -2, i);
    }
    lua_setglobal(lua, "arg");
}

int main(int argc, char **argv)
{
    if (argc < 2) {
        fprintf(stderr, "usage: lua SCRIPT [WORD...]\n");
        return 2;
    }
    lua_State *lua = luaL_newstate();
    if (lua == NULL) {
        fprintf(stderr, "lua: out of memory\n");
        return 1;
    }
    luaL_openlibs(lua);
    set_arguments(lua, argc - 1, argv + 1);
    int failed = luaL_dofile(lua, argv[1]);
    if (failed)
        fprintf(stderr, "lua: %s\n", lua_tostring(lua, -1));
    lua_close(lua);
    return failed;
}
